"""The boot check: QEMU boots an image's layout and the guest says what root it verified."""
