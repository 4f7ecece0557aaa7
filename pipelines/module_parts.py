"""What the Dagger module's functions have in common: how they fail, and how often the engine calls them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, TypeVar

import dagger
from dagger import Doc, function
from dagger.mod._exceptions import FunctionError

from pipelines.errors import DiskImageError, StageError

F = TypeVar("F", bound=Callable[..., object])

RecipeFolder = Annotated[
    dagger.Directory, Doc("The recipe's folder: recipe.toml, lock.json and the files it names")
]


def uncached(function_: F) -> F:
    """A function that the engine always calls: it speaks to the world, or has to look at it."""
    # The SDK's overloads lack `cache`.
    exposed: F = function(cache="never")(function_)  # type: ignore[call-overload]
    return exposed


class Failed(FunctionError):
    """What failed and what to do; the SDK prints no traceback for its kind."""


@contextmanager
def told() -> Iterator[None]:
    """Turn this project's failures into the engine's, in words: what failed, and what to do."""
    try:
        yield
    except DiskImageError as error:
        where = f"stage {error.stage}: " if isinstance(error, StageError) else ""
        raise Failed(f"{where}{error.what}\n  to do: {error.hint}") from None
