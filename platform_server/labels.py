"""What people call things: one line that shows what it says."""

from __future__ import annotations

from platform_server.errors import Invalid

LONGEST = 100


def label(field: str, text: str) -> str:
    """The text without spaces around it. Raises Invalid for none, one that is too long, and for characters
    that nobody sees or a terminal obeys (Unicode's categories Other and Separator, but for the space).
    """
    found = text.strip()
    if not 1 <= len(found) <= LONGEST or not found.isprintable():
        raise Invalid(field=field, value=found, rule=f"1 to {LONGEST} printable characters")
    return found
