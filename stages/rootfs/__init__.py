"""The rootfs stage: packages, kernel modules and what the recipe adds, as one tree."""
