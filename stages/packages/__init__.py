"""The packages stage: the locked packages, installed with their maintainer scripts."""
