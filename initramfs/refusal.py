"""The one way in which the boot ends early."""


class Refused(Exception):
    """This root must not run. The text says why, with what was expected and what was found."""
