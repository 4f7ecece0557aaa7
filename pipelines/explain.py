"""Why a stage runs: the parts of its key that changed since its last result, each from what to what."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from pipelines.keys import Document

if TYPE_CHECKING:
    from pipelines.definition import Plan
    from pipelines.sources import Sources
    from pipelines.store import Store

NEVER_RAN = "never ran"
NOTHING_CHANGED = "nothing changed: cached"
SAME_OUTPUT = "ran again, same output: what follows did not run"
RESULT_GONE = "its last result is gone from the store"
ASKED = "asked to run anew"

_SHOWN_VALUE = 60
_SHOWN_CHANGES = 3
# A part of a document as json gives it; it is compared, never interpreted.
_Part: TypeAlias = Any


@dataclass(frozen=True, slots=True)
class Explanation:
    """One stage: `result` is cached, runs or waits; `why` has one line a change."""

    stage: str
    result: str
    why: tuple[str, ...]


def changes(old: Document, new: Document) -> list[str]:
    """Every difference between two key documents in words; empty when they are equal."""
    found = [*_definition(old["definition"], new["definition"])]
    definition: _Part = new["definition"]
    found += _files("program", old["program"], new["program"])
    if old["tools"] != new["tools"]:
        found.append(f"tools changed from {_short(old['tools'])} to {_short(new['tools'])}")
    for name, before, after in _pairs(old["inputs"], new["inputs"]):
        origin = _origin(definition["inputs"], name) if after is not None else ""
        if before is None:
            found.append(f"input {name}{origin} is new")
        elif after is None:
            found.append(f"input {name} is gone")
        elif before != after:
            found.append(f"input {name}{origin} changed from {_short(before)} to {_short(after)}")
    if old["environment"] != new["environment"]:
        found.append(f"stage environment changed from {old['environment']} to {new['environment']}")
    return found


def why_runs(store: Store, plan: str, stage: str, new: Document) -> tuple[str, ...]:
    """Why a stage without a result under its key runs, by what changed since its last result."""
    last = store.last(plan, stage)
    if last is None:
        return (NEVER_RAN,)
    record = store.result(last.key)
    return (RESULT_GONE,) if record is None else tuple(changes(record.document, new)) or (RESULT_GONE,)


def shown(why: Sequence[str]) -> str:
    """Some changes in one line: the first three, and how many more."""
    more = len(why) - _SHOWN_CHANGES
    return "; ".join([*why[:_SHOWN_CHANGES], *([f"and {more} more"] if more > 0 else [])])


def explain(plan: Plan, sources: Sources, store: Store) -> list[Explanation]:
    """For each stage of the plan, in order, whether it would run now and why; runs nothing.

    What follows a stage that runs waits for it: its output decides.
    """
    from pipelines.local import current

    found: dict[str, Explanation] = {}
    for stage, document, record in current(plan, sources, store):
        if document is None:
            blocking = [need for need in stage.needs() if found[need.stage].result != "cached"]
            awaited = ", ".join(sorted({f"{need.stage}.{need.output}" for need in blocking}))
            never = store.last(plan.name, stage.name) is None
            why = (
                f"{NEVER_RAN}, waits for {awaited}" if never else f"runs only if {awaited} comes out changed"
            )
            found[stage.name] = Explanation(stage.name, "waits", (why,))
        elif record is None:
            reasons = why_runs(store, plan.name, stage.name, document)
            found[stage.name] = Explanation(stage.name, "runs", reasons)
        else:
            last = store.last(plan.name, stage.name)
            same = last is not None and last.key == record.key and last.same_output
            found[stage.name] = Explanation(
                stage.name, "cached", (SAME_OUTPUT if same else NOTHING_CHANGED,)
            )
    return list(found.values())


def _definition(old: _Part, new: _Part) -> Iterator[str]:
    """What a definition says itself; the content of its inputs and program files is told apart."""
    for name in sorted({*old, *new} - {"inputs", "params", "program"}):
        yield from _value(name, old.get(name), new.get(name))
    yield from _value("program module", old["program"]["module"], new["program"]["module"])
    yield from _members("parameter ", old["params"], new["params"])
    for name, before, after in _pairs(old["inputs"], new["inputs"]):
        if before is not None and after is not None and before != after:
            yield f"input {name} is now {_place(after)}, was {_place(before)}"


def _value(path: str, old: _Part, new: _Part) -> Iterator[str]:
    if old == new and type(old) is type(new):
        return
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        yield from _members(f"{path}.", old, new)
    elif isinstance(old, list) and isinstance(new, list):
        yield from _list(path, old, new)
    else:
        yield f"{path} changed from {_show(old)} to {_show(new)}"


def _members(prefix: str, old: _Part, new: _Part) -> Iterator[str]:
    for name in sorted({*old, *new}):
        if name not in old:
            yield f"{prefix}{name} is new: {_show(new[name])}"
        elif name not in new:
            yield f"{prefix}{name} is gone"
        else:
            yield from _value(f"{prefix}{name}", old[name], new[name])


def _list(path: str, old: list[_Part], new: list[_Part]) -> Iterator[str]:
    # An element put in the middle is one change, not a change of all that follow.
    from difflib import SequenceMatcher

    before, after = [[json.dumps(item, sort_keys=True) for item in items] for items in (old, new)]
    for _, start, end, new_start, new_end in SequenceMatcher(
        None, before, after, autojunk=False
    ).get_opcodes():
        both = min(end - start, new_end - new_start)
        for offset in range(both):
            yield from _value(f"{path}[{new_start + offset}]", old[start + offset], new[new_start + offset])
        for index in range(new_start + both, new_end):
            yield f"{path}[{index}] is new: {_show(new[index])}"
        for index in range(start + both, end):
            yield f"{path}[{index}] is gone: {_show(old[index])}"


def _files(label: str, old: _Part, new: _Part) -> Iterator[str]:
    for path, before, after in _pairs(old, new):
        if before is None:
            yield f"{label} {path} is new"
        elif after is None:
            yield f"{label} {path} is gone"
        elif before != after:
            yield f"{label} {path} changed"


def _pairs(old: _Part, new: _Part) -> Iterator[tuple[str, _Part, _Part]]:
    for name in sorted({*old, *new}):
        yield name, old.get(name), new.get(name)


def _origin(inputs: _Part, name: str) -> str:
    return f" ({_place(inputs[name])})"


def _place(place: _Part) -> str:
    """`packages.tree`, or a recipe file's path, or an external's name."""
    return str(next(iter(place.values())))


def _short(content: _Part) -> str:
    """A digest as people compare it: the first 12 digits."""
    return "none" if content is None else str(content).rpartition(":")[2][:12]


def _show(value: _Part) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _SHOWN_VALUE else text[: _SHOWN_VALUE - 1] + "…"
