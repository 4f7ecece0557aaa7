"""The kernel, built from the distribution's source package."""
