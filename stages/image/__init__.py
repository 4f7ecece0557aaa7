"""The image stage: kernel, initramfs, metadata and objects become one OCI artifact on disk."""
