"""`python -m pipelines` is `disk-image`."""

from pipelines.cli import main

main()
