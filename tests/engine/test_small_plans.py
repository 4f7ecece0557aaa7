"""The Dagger executor against a real engine, with plans that take seconds."""

from __future__ import annotations

import json
import time
from pathlib import Path

import anyio
import dagger
import pytest

from pipelines.dagger_containers import RESULTS
from pipelines.definition import OutputKind, Plan
from pipelines.engine import Exec
from pipelines.errors import StageError
from pipelines.keys import Content
from tests.engine.conftest import World, stage

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]


def pair(world: World, **also: str) -> Plan:
    """A folder, and a stage that reads it."""
    content = {"content": world.salt}
    return Plan(
        "pair",
        (
            stage("folder", "folder", kind=OutputKind.FILES, **content, **also),
            stage("reader", "read", "folder"),
        ),
    )


def test_a_second_run_and_equal_output(world: World) -> None:
    assert world.run(pair(world), "reader")[1] == {"folder": "ran", "reader": "ran"}
    build, became = world.run(pair(world), "reader")
    assert became == {"folder": "cached", "reader": "cached"}
    expected = build.output("reader", "out").content
    build, became = world.run(pair(world, comment="another"), "reader")
    assert became == {"folder": "ran", "reader": "cached"}
    assert build.output("reader", "out").content == expected


def test_what_a_stage_sees(world: World) -> None:
    plan = Plan("look", (stage("look", "look", salt=world.salt),))

    async def main() -> str:
        build = world.build(plan)
        await build.run(("look",))
        file = await build.bring("look", "out")
        assert isinstance(file, dagger.File)
        return await file.contents()

    seen = json.loads(world.with_engine(main))
    # CPython adds LC_CTYPE to none of its children; nothing but these four may be there.
    assert seen["environment"] == {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "LC_ALL": "C.UTF-8",
        "TZ": "UTC",
        "SOURCE_DATE_EPOCH": "7",
    }
    assert (seen["folder"], seen["tmp"], seen["uid"]) == ("/stage/program", [], 0)
    assert (seen["umask"], seen["new"]) == ("0022", "1")
    # a80425fb less mknod: what the local executor grants
    assert seen["capabilities"] == "00000000a00425fb"


def test_a_failing_stage_speaks_for_itself(world: World) -> None:
    plan = Plan("fail", (stage("broken", "fail", salt=world.salt),))
    with pytest.raises(StageError) as caught:
        world.run(plan, "broken")
    error = caught.value
    assert (error.what, error.hint, error.code, error.details) == (
        "it broke",
        "mend it",
        "broken",
        ("a", "b"),
    )
    assert error.log is not None
    assert "about to break" in error.log.read_text()
    assert "about to break" in world.said.getvalue()


@pytest.mark.parametrize("damage", ["printf x >out", "rm out"], ids=["poisoned", "half gone"])
def test_a_damaged_result_is_refused_and_rebuilt(world: World, damage: str) -> None:
    plan = pair(world)
    build, became = world.run(plan, "reader")
    assert became == {"folder": "ran", "reader": "ran"}
    expected, key = build.output("reader", "out").content, build.key("folder")

    async def spoil() -> None:
        asked = Exec(
            ("sh", "-c", f"cd /results/{key} && {damage} && echo {{}} >/stage/out/answer.json"),
            programs={"/runner": ("stages/__init__.py",)},
            volumes={"/results": RESULTS},
            fresh=True,
        )
        await world.engine().execute(asked)

    async def brought() -> Content:
        again = world.build(plan)
        await again.run(("reader",))
        await again.bring("folder", "out")
        return again.output("reader", "out").content

    world.with_engine(spoil)
    assert world.with_engine(brought) == expected
    assert "stage folder runs again" in world.said.getvalue()


def test_cancelling_leaves_no_process(world: World) -> None:
    plan = Plan("sleep", (stage("sleeper", "sleep", salt=world.salt),))

    seen: list[str] = []

    async def main() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(world.build(plan).run, ("sleeper",))
            with anyio.move_on_after(60):
                while not seen:
                    await anyio.sleep(0.2)
                    seen.extend(sleepers())
            group.cancel_scope.cancel()

    world.with_engine(main)
    assert seen, "the sleeping stage was not seen on this machine: run this test where the engine is"
    deadline = time.monotonic() + 30
    while sleepers() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert sleepers() == []


def sleepers() -> list[str]:
    """The processes that run the small project's program, on this machine's engine."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if b"stages.small\0/stage" in path.read_bytes():
                found.append(path.parent.name)
        except OSError:
            continue
    return found
