"""The sbom stage: what the image holds and was built with, as SPDX 2.3."""
