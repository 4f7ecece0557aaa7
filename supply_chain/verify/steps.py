"""The numbered steps of verifying an image, and the errors that name them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum

from supply_chain.errors import (
    BrokenAnswer,
    InvalidDocument,
    LayoutError,
    NotFound,
    VerificationError,
    WrongContent,
)


class Step(StrEnum):
    """In their order; `VerificationError.step` is one of these words."""

    MANIFEST = "manifest"
    CONTENT = "content"
    REFERRERS = "referrers"
    SIGNATURES = "signatures"
    SBOM = "sbom"
    PROVENANCE = "provenance"
    LOCK = "lock"

    @property
    def number(self) -> int:
        """From 1 on."""
        return list(Step).index(self) + 1

    def line(self, how: str) -> str:
        """How it went, for people."""
        return f"{self.number}  {self:<{max(map(len, Step))}}  {how}"


@dataclass(frozen=True, slots=True)
class Done:
    """A step that held, and what it found."""

    step: Step
    found: str

    @property
    def line(self) -> str:
        """For people."""
        return self.step.line(f"ok      {self.found}")


@contextmanager
def within(step: Step) -> Iterator[None]:
    """Whatever in here speaks against the image becomes a VerificationError of this step.

    What speaks of a service (a registry that is down or refuses access) or of the trust stays what it is:
    nothing is known of the image then, and asking again may help.
    """
    try:
        yield
    except VerificationError as error:
        error.step = error.step or step
        raise
    except (InvalidDocument, LayoutError, NotFound, BrokenAnswer, WrongContent) as error:
        raise VerificationError(error.what, error.hint, step=step) from None
