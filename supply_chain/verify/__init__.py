"""Verifying an image: signature, SBOM and provenance by one trusted signer, compared with what is there."""
