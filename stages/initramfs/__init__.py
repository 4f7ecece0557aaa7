"""The initramfs stage: init, its runtime and the kernel modules as one compressed cpio archive."""
