"""What is left when a stage fails, a run is killed, two run at once, or the disk refuses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipelines import local
from pipelines.definition import Plan, StageOutput
from pipelines.errors import StageError, StoreError
from tests.pipelines.executor import World, became, numbered_plan


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World.new(tmp_path)


def test_a_failing_stage_cancels_the_others_and_shows_its_log_once(world: World) -> None:
    fails = world.stage(
        "fails", 'print("before"); raise Failure("it broke", "mend it", code="broken", details=["x"])'
    )
    waits = world.stage("waits", "time.sleep(600)")
    began = time.monotonic()
    with pytest.raises(StageError) as caught:
        world.run(Plan("p", (waits, fails)), "waits", "fails", jobs=2)
    assert time.monotonic() - began < 60
    error = caught.value
    assert (error.what, error.hint, error.stage, error.code, error.details) == (
        "it broke", "mend it", "fails", "broken", ("x",),
    )  # fmt: skip
    assert error.log is not None
    assert error.log.read_text() == "before\n"
    assert world.heard.tail == ["before"]
    assert world.heard.rerun == f"disk-image build {world.recipe} --only fails"
    assert processes_of(world.root) == []
    assert list((world.store.root / "work").iterdir()) == []


def test_a_program_that_dies_without_a_word_is_a_stage_error_with_the_log_s_tail(world: World) -> None:
    body = 'for n in range(100): print("line", n)\nos.kill(os.getpid(), 11)'
    with pytest.raises(StageError, match="its program ended with signal 11"):
        world.run(
            Plan("p", (world.stage("dies", "print(end='', flush=True)\n" + body.replace("kill", "kill")),))
        )
    assert len(world.heard.tail) <= 60


def test_only_the_end_of_a_long_log_is_shown(world: World) -> None:
    body = 'for n in range(500): print("line", n)\nraise SystemExit(3)'
    with pytest.raises(StageError, match="exit code 3"):
        world.run(Plan("p", (world.stage("long", body),)))
    assert world.heard.tail == [f"line {number}" for number in range(440, 500)]


def test_what_is_finished_before_a_failure_stays(world: World) -> None:
    good = world.stage("good", 'job.output("out").write_text("good")')
    bad = world.stage("bad", 'raise Failure("no", "yes")', inputs={"in": StageOutput("good", "out")})
    with pytest.raises(StageError):
        world.run(Plan("p", (good, bad)))
    world.write("bad", 'job.output("out").write_text("better")')
    assert became(world.run(Plan("p", (good, bad)))) == {"good": "cached", "bad": "ran"}


# The same run as a process of its own, to be killed or doubled.

RUNNER = """
import json, sys
from pathlib import Path
from pipelines.store import Store
from tests.pipelines.executor import World, became, numbered_plan
from tests.pipelines import test_local_failures
world = World(Path(sys.argv[1]), Store(Path(sys.argv[1]) / "store"))
results = world.run(getattr(test_local_failures, sys.argv[2])(world))
digest = results.output(results.stages[-1].name, "out").content.digest
print(json.dumps({"became": became(results), "digest": digest}))
"""


def start(world: World, plan: str) -> subprocess.Popen[str]:
    """The plan's run in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", RUNNER, str(world.root), plan],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def slow(world: World) -> Plan:
    """A stage that writes half, says so, and goes on when it is let."""
    body = """
    from pathlib import Path
    with job.output("out").open("w") as out:
        out.write("half ")
        out.flush()
        marks = Path(job.params["marks"])
        (marks / f"{os.getpid()}").touch()
        while not (marks / "go").exists():
            time.sleep(0.01)
        out.write("whole")
    """
    marks = world.root / "marks"
    marks.mkdir(exist_ok=True)
    return Plan("slow", (world.stage("slow", body, params={"marks": str(marks)}),))


def wait_for(condition: object, seconds: float = 30) -> None:
    """Wait until the callable gives something true."""
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def marks_of(world: World) -> list[str]:
    folder = world.root / "marks"
    return [path.name for path in folder.iterdir() if path.name.isdigit()] if folder.exists() else []


def processes_of(folder: Path) -> list[str]:
    """Command lines of running processes that name the folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes()
        except OSError:
            continue
        if os.fsencode(folder) in command:
            found.append(command.replace(b"\0", b" ").decode())
    return found


@pytest.mark.parametrize(
    "number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM], ids=["KILL", "INT", "TERM"]
)
def test_a_killed_run_leaves_nothing_running_and_the_same_run_finishes_with_the_same_digest(
    world: World, tmp_path: Path, number: signal.Signals
) -> None:
    first = start(world, "slow")
    wait_for(lambda: marks_of(world))
    first.send_signal(number)
    first.communicate(timeout=30)
    assert first.returncode != 0
    wait_for(lambda: processes_of(world.root) == [])
    (world.root / "marks" / "go").touch()
    second = start(world, "slow")
    told = json.loads(second.communicate(timeout=60)[0])
    assert told["became"] == {"slow": "ran"}
    assert list((world.store.root / "work").iterdir()) == []
    calm = World.new(tmp_path / "calm")
    calm_plan = slow(calm)
    (calm.root / "marks" / "go").touch()
    assert calm.run(calm_plan).output("slow", "out").content.digest == told["digest"]


def test_two_runs_at_once_on_one_store_run_a_stage_once(world: World) -> None:
    runs = [start(world, "slow")]
    wait_for(lambda: marks_of(world))
    runs.append(start(world, "slow"))
    time.sleep(1.0)
    assert len(marks_of(world)) == 1
    (world.root / "marks" / "go").touch()
    told = [json.loads(run.communicate(timeout=60)[0]) for run in runs]
    assert sorted(one["became"]["slow"] for one in told) == ["cached", "ran"]
    assert told[0]["digest"] == told[1]["digest"]
    assert len(marks_of(world)) == 1


def test_a_full_disk_is_a_store_error_that_says_what_to_do_and_loses_nothing(
    world: World, tmp_path: Path
) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mount(small, "size=4m")
    try:
        full = World.new(tmp_path / "full", store=small / "store")
        good = full.stage("good", 'job.output("out").write_text("good")')
        big = full.stage(
            "big", 'job.output("out").write_bytes(bytes(8 << 20))', inputs={"in": StageOutput("good", "out")}
        )
        with pytest.raises(StoreError, match="no space left") as caught:
            full.run(Plan("p", (good, big)))
        assert "cache gc" in caught.value.hint
        assert became(full.run(Plan("p", (good,)))) == {"good": "cached"}
        full.write("big", 'job.output("out").write_text("small")')
        assert became(full.run(Plan("p", (good, big)))) == {"good": "cached", "big": "ran"}
    finally:
        subprocess.run(["umount", small], check=True)


def test_a_read_only_store_serves_what_it_has_and_says_what_to_do_for_the_rest(
    world: World, tmp_path: Path
) -> None:
    folder = tmp_path / "mounted"
    folder.mkdir()
    mount(folder, "size=16m")
    try:
        held = World.new(tmp_path / "held", store=folder / "store")
        plan = numbered_plan(held)
        held.run(plan)
        subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
        with held.store.use(writing=False):
            assert isinstance(local.cached(plan, ["two"], held.sources(), held.store), local.Results)
        with pytest.raises(StoreError, match="the store can't be written") as caught:
            held.run(numbered_plan(held, suffix="x"))
        assert "--store" in caught.value.hint
    finally:
        subprocess.run(["umount", folder], check=True)


def mount(folder: Path, options: str) -> None:
    """A tmpfs at the folder; only root can make one."""
    if os.geteuid() != 0:
        pytest.skip("mounting a tmpfs needs root")
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=True)
