"""The kernel, as the distribution packages it."""
