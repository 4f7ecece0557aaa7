"""The composefs stage: a root's canonical tar becomes the metadata image that names every byte of it."""
