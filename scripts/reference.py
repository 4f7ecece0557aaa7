"""Write docs/reference/command-line.md and recipe.md from the code; `make docs` runs this, a test
compares.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipelines.cli import parser
from pipelines.recipe import BUILT_VARIANTS, VARIANTS, Recipe

FOLDER = Path(__file__).parents[1] / "docs" / "reference"


def command_line() -> str:
    """Every verb's help."""
    os.environ["COLUMNS"] = "100"
    parts = [
        "# Command line\n",
        (
            "Generated from the code by `make docs`. Exit codes: 0 done, 1 failed, 2 wrong use. "
            "Progress goes to standard error.\n"
        ),
    ]
    for name, verb in _verbs("", parser()):
        parts.append(f"## {name}\n\n```text\n{verb.format_help().rstrip()}\n```\n")
    return "\n".join(parts)


def _verbs(before: str, top: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Every verb below, and every action of a verb that has some."""
    for action in top._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, verb in action.choices.items():
                yield f"{before}{name}", verb
                yield from _verbs(f"{before}{name} ", verb)


def recipe() -> str:
    """Every field of a recipe, with its rule."""
    schema = Recipe.model_json_schema()
    unbuilt = ", ".join(name for name in VARIANTS if name not in BUILT_VARIANTS)
    parts = [
        "# Recipe\n",
        (
            "Generated from the code by `make docs`. A recipe is `recipe.toml` in a folder of its own; "
            "paths of sources are below that folder.\n"
        ),
        f"Variants built: {', '.join(BUILT_VARIANTS)}. Refused until they are built: {unbuilt}.\n",
        *_table("recipe.toml", schema, schema),
    ]
    for name, model in schema["$defs"].items():
        parts += _table(name, model, schema)
    return "\n".join(parts)


def _table(title: str, model: dict[str, Any], schema: dict[str, Any]) -> Iterator[str]:
    yield f"## {title}\n"
    if description := model.get("description"):
        yield f"{' '.join(description.split())}\n"
    yield "| field | value | required |\n|---|---|---|"
    required = set(model.get("required", ()))
    for field, rule in model.get("properties", {}).items():
        yield f"| `{field}` | {_rule(rule)} | {'yes' if field in required else 'no'} |"
    yield ""


def _rule(rule: dict[str, Any]) -> str:
    if "$ref" in rule:
        return str(rule["$ref"]).rsplit("/", 1)[1]
    for key in ("anyOf", "oneOf"):
        if key in rule:
            return " or ".join(_rule(one) for one in rule[key] if one.get("type") != "null")
    if "enum" in rule or "const" in rule:
        return ", ".join(f"`{value}`" for value in rule.get("enum", [rule.get("const")]))
    if rule.get("type") == "array":
        return f"list of {_rule(rule.get('items', {}))}"
    words = [str(rule.get("type", "value"))]
    if "pattern" in rule:
        words.append("matching `" + rule["pattern"].replace("|", "\\|") + "`")
    words += [f"{name} {rule[key]}" for key, name in (("minimum", "from"), ("maximum", "to")) if key in rule]
    return " ".join(words)


PAGES = {"command-line.md": command_line, "recipe.md": recipe}

if __name__ == "__main__":
    for page, render in PAGES.items():
        (FOLDER / page).write_text(render())
