"""TOML into a pydantic model; errors name file, line, field, value, rule and the nearest valid name."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from pipelines.errors import RecipeError

MAXIMUM_BYTES = 256 * 1024

# What TOML calls the types that the model calls by Python's names.
_TOML_TYPES = {"tuple_type": "an array", "model_type": "a table", "model_attributes_type": "a table"}

Loc = tuple[int | str, ...]
Model = TypeVar("Model", bound=BaseModel)


def read_text(path: Path) -> str:
    """The file's text. Raises RecipeError when it is missing, unreadable, over 256 KiB or not UTF-8."""
    try:
        with path.open("rb") as file:
            data = file.read(MAXIMUM_BYTES + 1)
    except OSError as error:
        raise RecipeError(
            f"{path}: {error.strerror}", "name a folder that holds a readable recipe.toml"
        ) from None
    if len(data) > MAXIMUM_BYTES:
        raise RecipeError(
            f"{path}: more than {MAXIMUM_BYTES} bytes", "put content into files beside the recipe"
        )
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise RecipeError(
            f"{path}:{line}: byte {data[error.start]:#04x} is not UTF-8",
            "save the file as UTF-8 (TOML allows nothing else)",
        ) from None


def load(path: Path, model: type[Model]) -> Model:
    """Read `path` as a `model`. Raises RecipeError for the first rule that is broken."""
    text = read_text(path)
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{path}: not TOML: {error}", "correct that line") from None
    except RecursionError:
        raise RecipeError(f"{path}: not TOML: arrays or tables nested without end", "close them") from None
    try:
        return model.model_validate(_tuples(data))
    except ValidationError as error:
        # A misspelt key first: what is missing is missing for it.
        problems = sorted(error.errors(include_url=False), key=lambda one: one["type"] != "extra_forbidden")
        what, hint = _explained(problems[0], model)
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise broken(path, text, _path(problems[0]["loc"]), what + more, hint) from None


def broken(path: Path, text: str, loc: Loc, what: str, hint: str) -> RecipeError:
    """The error for the field at `loc`: `file:line: field: what`."""
    return RecipeError(f"{path}:{line_of(text, loc)}: {_dotted(loc)}: {what}", hint)


def nearest(name: str, valid: Sequence[str]) -> str:
    """A hint that names the valid name nearest to `name`, or all of them when none is near."""
    close = get_close_matches(name, valid, n=1)
    return f"did you mean {close[0]!r}?" if close else f"valid names: {', '.join(valid)}"


def line_of(text: str, loc: Loc) -> int:
    """The line, from 1, on which the value at `loc` starts; where it is missing, the line of its holder.

    The TOML parser itself is the judge: the value starts after the longest run of lines that doesn't have
    it.
    """
    lines = text.splitlines()
    while loc and not _holds(_parsed(lines, len(lines)), loc):
        loc = loc[:-1]
    if not loc:
        return 1
    low, high = 0, len(lines)
    while high - low > 1:
        middle = (low + high) // 2
        if _holds(_parsed(lines, middle), loc):
            high = middle
        else:
            low = middle
    while low and _data(lines, low) is None:
        low -= 1
    return next(
        number for number in range(low + 1, high + 1) if number == high or _says_something(lines[number - 1])
    )


def _says_something(line: str) -> bool:
    return bool(line.strip()) and not line.lstrip().startswith("#")


def _parsed(lines: Sequence[str], count: int) -> Any:
    """What the first `count` lines say, or fewer where they end inside a value."""
    while (data := _data(lines, count)) is None:
        count -= 1
    return data


def _data(lines: Sequence[str], count: int) -> Any:
    """None when the first `count` lines are no TOML, not even with their last array closed."""
    text = "\n".join(lines[:count])
    for end in ("", "\n]"):
        try:
            return tomllib.loads(text + end)
        except tomllib.TOMLDecodeError:
            continue
    return None


def _holds(data: Any, loc: Loc) -> bool:
    for part in loc:
        try:
            data = data[part]
        except (KeyError, IndexError, TypeError):
            return False
    return True


def _tuples(value: Any) -> Any:
    """Arrays as tuples, which the models' strictness asks for."""
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def _path(loc: Loc) -> Loc:
    """A place in the file: without the tags, which start with '<', of a choice between models."""
    return tuple(part for part in loc if not str(part).startswith("<"))


def _dotted(loc: Loc) -> str:
    text = ""
    for part in loc:
        text += f"[{part}]" if isinstance(part, int) else f".{part}"
    return text.removeprefix(".") or "recipe"


def _explained(problem: ErrorDetails, model: type[BaseModel]) -> tuple[str, str]:
    kind, found = problem["type"], repr(problem["input"])
    found = found if len(found) <= 80 else found[:77] + "..."
    if kind == "extra_forbidden":
        key = str(problem["loc"][-1])
        return "unknown key", nearest(key, sorted(_model_at(model, problem["loc"][:-1]).model_fields))
    if kind == "missing":
        return "required, and not there", "add it"
    if kind == "literal_error":
        expected = str(problem["ctx"]["expected"])
        valid = expected.replace(" or ", ", ").replace("'", "").split(", ")
        return f"expected {expected}, found {found}", nearest(str(problem["input"]), valid)
    if kind in _TOML_TYPES:
        return f"expected {_TOML_TYPES[kind]}, found {found}", "change the value's type"
    rule = problem["msg"].removeprefix("Value error, ")
    hint = "change the value so that it keeps the rule"
    if isinstance(problem["input"], dict):
        valid = sorted({name for one in _choices(model, problem["loc"]) for name in one.model_fields})
        hint = next((nearest(key, valid) for key in problem["input"] if key not in valid), hint)
    return f"{rule}, found {found}", hint


def _model_at(model: type[BaseModel], loc: Loc) -> type[BaseModel]:
    """The model that describes the table at `loc`."""
    return _choices(model, loc)[0]


def _choices(model: type[BaseModel], loc: Loc) -> list[type[BaseModel]]:
    """The models that may describe the table at `loc`: more than one before a choice is made."""
    models = [model]
    for part in loc:
        if isinstance(part, int):
            continue
        if part.startswith("<"):
            models = [one for one in models if one.__name__ == part.strip("<>")]
        else:
            models = _models(models[0].model_fields[part].annotation)
    return models


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for inner in get_args(annotation) for model in _models(inner)]
