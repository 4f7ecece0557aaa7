"""The embedded reference platform: it is told of images, trusts nothing it is told, verifies and publishes.

Read in this order: `states.py` (what can become of a publication), `tables/`, `intake.py` (the webhook),
`worker.py` (verifying), `retention.py`, then `app.py`, which serves all of it. It is an extra of the package
(`disk-image-ci[platform]`): nothing outside this room may import it at start-up.
"""
