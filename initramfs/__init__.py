"""What runs as PID 1 in the initramfs: from the kernel's command line to a verified root.

Runs under the image's own Python with a handful of standard library modules (stages/initramfs/runtime.py
lists them), so nothing here may import anything else. Read `main` first: it is the list of steps.
"""
