"""Write the pages of docs/reference that are made of the code; `make docs` runs this, a test compares."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from pipelines.cli import parser
from pipelines.recipe import BUILT_VARIANTS, VARIANTS, Recipe
from platform_server import metrics
from platform_server.action_table import ACTIONS
from platform_server.actions import Action
from platform_server.api import PREFIX
from platform_server.gauges import described
from platform_server.settings import Limits

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


def limits() -> str:
    """Every limit of the platform, with its default."""
    parts = [
        "# The platform's limits\n",
        (
            "Generated from the code by `make docs`. `disk-image platform serve --limit NAME=VALUE` sets "
            "one, and is repeatable. All of them count for one process; an address is all of its IPv6 /64. "
            "`webhook_body` is at most `body`.\n"
        ),
        "| limit | default | from | to | bounds | what goes beyond is |\n|---|---|---|---|---|---|",
    ]
    parts += [
        f"| `{each.name}` | {each.default} | {each.metadata['least']} | {each.metadata['most']} "
        f"| {each.metadata['what']} | {each.metadata['then']} |"
        for each in fields(Limits)
    ]
    return "\n".join([*parts, ""])


def platform_metrics() -> str:
    """Every metric of the platform."""
    labels = {
        each._name: each._labelnames for each in vars(metrics).values() if hasattr(each, "_labelnames")
    }
    parts = [
        "# The platform's metrics\n",
        (
            "Generated from the code by `make docs`. [Watch a platform](../how-to/watch-a-platform.md) says "
            "how to read them, and what to do. Those of the process and of Python have the names that they "
            "have everywhere (`process_resident_memory_bytes`).\n"
        ),
        "| metric | type | labels | |\n|---|---|---|---|",
    ]
    for family in described():
        if family.name.startswith("disk_image"):
            name = family.name + {"counter": "_total", "info": "_info"}.get(family.type, "")
            words = ", ".join(labels.get(family.name) or getattr(family, "_labelnames", None) or ())
            parts.append(f"| `{name}` | {family.type} | {words} | {family.documentation} |")
    return "\n".join([*parts, ""])


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


_ACTIONS = """\
Generated from the code by `make docs`. What an operator of [the platform](platform.md) does, by one
name over REST and as a tool of [its MCP server](../how-to/connect-an-mcp-client.md). Parameters are
a JSON object, in which nothing unknown is passed over. Over REST an answer is `data` in the
platform's envelope, over MCP the structured content. What is not carried out is told in the same
words on both: field, rule, value.
"""


def actions() -> str:
    """Every action of the platform's operators, and the models in their answers."""
    parts = [
        "# Actions\n",
        _ACTIONS,
        "| action | does | permission |\n|---|---|---|",
        *(
            f"| [`{action.name}`](#{action.name}) | {action.summary} | `{action.permission}` |"
            for action in ACTIONS.values()
        ),
        "",
    ]
    models: dict[str, Any] = {}
    for action in ACTIONS.values():
        parts += _action(action, models)
    parts.append("## In answers\n")
    for name, model in sorted(models.items()):
        if "properties" in model:
            parts += [
                f"### {name}\n",
                f"{' '.join(model.get('description', '').split())}\n",
                *_answer(model, models),
                "",
            ]
    return "\n".join(parts)


def _action(action: Action, models: dict[str, Any]) -> Iterator[str]:
    given = action.params.model_json_schema()
    answered = action.result.model_json_schema(mode="serialization")
    models |= answered.get("$defs", {})
    yield f"## {action.name}\n"
    yield f"{action.summary} It {action.effect.value}.\n"
    yield f"`POST {PREFIX}/actions/{action.name}`, permission `{action.permission}`.\n"
    if given["properties"]:
        yield "| parameter | value | |\n|---|---|---|"
        required = set(given.get("required", ()))
        for name, rule in given["properties"].items():
            default = rule.get("default")
            need = (
                "required"
                if name in required
                else f"else `{json.dumps(default)}`"
                if default is not None
                else ""
            )
            says = ", ".join(each for each in (rule.get("description", ""), need) if each)
            yield f"| `{name}` | {_value(rule, given.get('$defs', {}))} | {says} |"
    else:
        yield "No parameters."
    yield ""
    yield from _answer(answered, models)
    yield ""
    if action.secret is not None:
        yield (
            f"Over MCP `{action.secret.field}` is null, and `read_secret_once` says how it is read, once: "
            "`secret_id`, `expires_at`, `command`, `url`.\n"
        )
    example = json.dumps(example_of(action))
    yield "```console"
    yield "$ curl -sS -H \"Authorization: Bearer $TOKEN\" -H 'Content-Type: application/json' \\"
    yield f"    http://127.0.0.1:8000{PREFIX}/actions/{action.name} -d '{example}'"
    yield "```\n"


def _answer(model: Mapping[str, Any], models: Mapping[str, Any]) -> Iterator[str]:
    yield "| answer | value |\n|---|---|"
    for name, rule in model["properties"].items():
        null = any(each.get("type") == "null" for each in rule.get("anyOf", ()))
        yield f"| `{name}` | {_value(rule, models)}{' or null' if null else ''} |"


def _value(rule: Mapping[str, Any], models: Mapping[str, Any]) -> str:
    """A rule in words; of a few words, which these are."""
    chosen = next((each for each in rule.get("anyOf", ()) if each.get("type") != "null"), rule)
    if "const" in chosen:
        return f"`{json.dumps(chosen['const'])}`"
    named = models.get(str(chosen.get("$ref", "")).rsplit("/", 1)[-1], {})
    if "enum" in named or "const" in named:
        return _rule(named)
    if chosen.get("format") == "uuid":
        return "id"
    if chosen.get("format") == "date-time":
        return "time"
    return _rule(dict(chosen))


def example_of(action: Action) -> dict[str, Any]:
    """Parameters as one may give them: those that are required, and others that have an example."""
    schema = action.params.model_json_schema()
    return {
        name: rule["examples"][0] if "examples" in rule else _SOME_ID
        for name, rule in schema["properties"].items()
        if "examples" in rule or name in schema.get("required", ()) or name == "worker_id"
    }


_SOME_ID = "01a213e0-0d98-7a95-8823-0af390ef7d0f"

PAGES = {
    "command-line.md": command_line,
    "recipe.md": recipe,
    "actions.md": actions,
    "platform-limits.md": limits,
    "platform-metrics.md": platform_metrics,
}

if __name__ == "__main__":
    for page, render in PAGES.items():
        (FOLDER / page).write_text(render())
