"""Publishing: sign, push and tell the platform, as steps that can be run again after any failure."""
