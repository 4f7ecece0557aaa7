"""The local executor over bootstrap stages: what runs, what doesn't, what is left when something fails."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from pipelines import local
from pipelines.definition import External, Output, OutputKind, Plan, RecipeFile, StageOutput
from pipelines.errors import RecipeError, StageError, StoreError, UsageError
from pipelines.job_folder import TRANSPORT_VARIABLES
from pipelines.store import Store
from tests.pipelines.executor import World, became

COPY = 'job.output("out").write_text(job.input("in").read_text())'


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World.new(tmp_path)


def chain(world: World) -> Plan:
    """first (reads the recipe's `text`, drops comments) → second (copies) → third (copies)."""
    (world.recipe / "text").write_text("hello\n")
    first = world.stage(
        "first",
        """
        lines = job.input("in").read_text().splitlines()
        job.output("out").write_text("\\n".join(line for line in lines if not line.startswith("#")))
        """,
        inputs={"in": RecipeFile("text")},
    )
    second = world.stage("second", COPY, inputs={"in": StageOutput("first", "out")})
    third = world.stage("third", COPY, inputs={"in": StageOutput("second", "out")})
    return Plan("chain", (first, second, third))


def test_a_plan_runs_once_and_is_cached_afterwards(world: World) -> None:
    plan = chain(world)
    results = world.run(plan)
    assert became(results) == {"first": "ran", "second": "ran", "third": "ran"}
    assert world.read(results, "third") == "hello"
    assert [stage.why for stage in results.stages] == ["never ran"] * 3
    assert became(world.run(plan)) == {"first": "cached", "second": "cached", "third": "cached"}


def test_the_quick_walk_finds_everything_cached_without_loading_the_scheduler(world: World) -> None:
    world.run(chain(world))
    code = f"""
    import sys
    from pathlib import Path
    from tests.pipelines.executor import World
    from tests.pipelines.test_local import chain
    from pipelines import local
    from pipelines.store import Store
    world = World(Path({str(world.root)!r}), Store(Path({str(world.store.root)!r})))
    loaded = set(sys.modules)
    found = local.cached(chain(world), ["third"], world.sources(), world.store)
    assert isinstance(found, local.Results), found
    heavy = {{"anyio", "asyncio", "rich", "subprocess"}} & (set(sys.modules) - loaded)
    assert not heavy, heavy
    """
    repository = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, cwd=repository)


def test_the_local_executor_s_quick_half_imports_no_scheduler() -> None:
    code = (
        "import sys, pipelines.local, pipelines.store;"
        "heavy = {'anyio', 'asyncio', 'rich', 'subprocess', 'tarfile'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_the_quick_walk_names_the_first_stage_that_must_run(world: World) -> None:
    plan = chain(world)
    world.run(plan)
    world.write("second", 'job.output("out").write_text("other")')
    found = local.cached(plan, ["third"], world.sources(), world.store)
    assert found == local.Pending("second", ("program stages/second/__main__.py changed",))


def test_equal_output_stops_the_work(world: World) -> None:
    plan = chain(world)
    world.run(plan)
    (world.recipe / "text").write_text("# a comment\nhello\n")
    results = world.run(plan)
    assert became(results) == {"first": "ran", "second": "cached", "third": "cached"}
    why = [stage.why for stage in results.stages]
    assert why[0].startswith("input in (text) changed from ")
    assert why[0].endswith("; same output")
    assert why[1] == "first ran, but nothing that this stage reads changed"
    assert why[2] == "nothing changed: cached"


def test_a_changed_output_runs_what_follows_and_nothing_else(world: World) -> None:
    plan = chain(world)
    (world.recipe / "other").write_text("other")
    aside = world.stage("aside", COPY, inputs={"in": RecipeFile("other")})
    plan = Plan("chain", (*plan.stages, aside))
    world.run(plan, "third", "aside")
    (world.recipe / "text").write_text("changed")
    results = world.run(plan, "third", "aside")
    assert became(results) == {"first": "ran", "second": "ran", "third": "ran", "aside": "cached"}


def test_only_what_the_targets_need_runs(world: World) -> None:
    results = world.run(chain(world), "second")
    assert became(results) == {"first": "ran", "second": "ran"}


def test_a_stage_asked_for_anew_runs_though_it_is_cached(world: World) -> None:
    plan = chain(world)
    world.run(plan)
    results = world.run(plan, anew={"third"})
    assert became(results) == {"first": "cached", "second": "cached", "third": "ran"}
    assert results.stages[2].why == "asked to run anew; same output"


def test_independent_stages_run_side_by_side(world: World) -> None:
    meet = """
    folder = job.params["folder"]
    open(os.path.join(folder, job.name), "w").close()
    deadline = time.monotonic() + 30
    while len(os.listdir(folder)) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    job.output("out").write_text(str(len(os.listdir(folder))))
    """
    meeting = world.root / "meeting"
    meeting.mkdir()
    plan = Plan(
        "p", tuple(world.stage(name, meet, params={"folder": str(meeting)}) for name in ("left", "right"))
    )
    results = world.run(plan, "left", "right", jobs=2)
    assert [world.read(results, name) for name in ("left", "right")] == ["2", "2"]


def test_no_more_than_the_asked_number_of_programs_run_at_once(world: World) -> None:
    alone = """
    marker = job.params["marker"]
    os.mkdir(marker)
    time.sleep(0.1)
    os.rmdir(marker)
    job.output("out").write_text("alone")
    """
    marker = str(world.root / "marker")
    plan = Plan("p", tuple(world.stage(name, alone, params={"marker": marker}) for name in ("a", "b", "c")))
    assert set(became(world.run(plan, "a", "b", "c", jobs=1)).values()) == {"ran"}


def test_intermediate_outputs_are_not_demanded_when_everything_that_follows_is_cached(world: World) -> None:
    plan = numbered_plan(world)
    results = world.run(plan)
    world.store.blob(results.output("one", "out").content.digest).unlink()
    assert isinstance(local.cached(plan, ["two"], world.sources(), world.store), local.Results)
    assert became(world.run(plan)) == {"one": "cached", "two": "cached"}


def numbered_plan(world: World, suffix: str = "") -> Plan:
    return Plan("numbered", (
        world.stage("one", 'job.output("out").write_text("1" * 1000)'),
        world.stage(
            "two",
            f'job.output("out").write_text(job.input("in").read_text() + "2{suffix}")',
            inputs={"in": StageOutput("one", "out")},
        ),
    ))  # fmt: skip


def test_a_missing_intermediate_is_made_again_when_a_stage_needs_it(world: World) -> None:
    results = world.run(numbered_plan(world))
    digest = results.output("one", "out").content.digest
    world.store.blob(digest).unlink()
    results = world.run(numbered_plan(world, suffix="x"))
    assert became(results) == {"one": "ran", "two": "ran"}
    assert results.stages[0].why == f"one.out: blob sha256:{digest} is missing; same output"
    assert world.read(results, "two") == "1" * 1000 + "2x"


@pytest.mark.parametrize("keep_times", [False, True], ids=["new times", "times put back"])
def test_a_corrupted_entry_that_a_stage_reads_is_named_removed_and_rebuilt(
    world: World, keep_times: bool
) -> None:
    results = world.run(numbered_plan(world))
    digest = results.output("one", "out").content.digest
    corrupt(world.store.blob(digest), keep_times=keep_times)
    world.store = Store(world.store.root)  # as a later process, which has hashed nothing yet
    results = world.run(numbered_plan(world, suffix="x"))
    assert became(results) == {"one": "ran", "two": "ran"}
    assert world.read(results, "two") == "1" * 1000 + "2x"
    assert results.output("one", "out").content.digest == digest
    [note] = world.heard.notes
    assert f"one.out: blob sha256:{digest} holds bytes with sha256:" in note
    assert note.endswith("removed, stage one runs again")


def test_a_corrupted_target_is_found_by_its_signature_and_rebuilt(world: World) -> None:
    results = world.run(numbered_plan(world))
    digest = results.output("two", "out").content.digest
    corrupt(world.store.blob(digest), keep_times=False)
    plan = numbered_plan(world)
    found = local.cached(plan, ["two"], world.sources(), world.store)
    assert isinstance(found, local.Pending)
    assert digest in found.why[0]
    results = world.run(plan)
    assert became(results) == {"one": "cached", "two": "ran"}
    assert world.read(results, "two") == "1" * 1000 + "2"


def corrupt(blob: Path, *, keep_times: bool) -> None:
    """Change one byte, not the size; put the times back like a failing disk would leave them."""
    status = blob.stat()
    blob.chmod(0o644)
    with blob.open("r+b") as stream:
        stream.write(b"X")
    if keep_times:
        os.utime(blob, ns=(status.st_atime_ns, status.st_mtime_ns))


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


def test_progress_lines_reach_the_reporter_and_stay_out_of_the_log(world: World) -> None:
    body = """
    progress(1, 2)
    print("@progress nonsense")
    progress(2, 2, "files")
    job.output("out").write_text("")
    """
    plan = Plan("p", (world.stage("tells", body),))
    world.run(plan)
    assert world.heard.steps == [("tells", 1, 2, "bytes"), ("tells", 2, 2, "files")]
    assert world.store.log_path("p", "tells").read_text() == "@progress nonsense\n"


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("pass", "out: expected a plain file, found nothing"),
        ('job.output("out").mkdir()', "out: expected a plain file, found a folder"),
        ('job.output("out").symlink_to("/etc/passwd")', "out: expected a plain file, found a symbolic link"),
        ('job.output("out").write_text("")\njob.output("more").write_text("")', "more: expected only out"),
    ],
    ids=["missing", "folder", "symlink to the host", "undeclared"],
)
def test_outputs_that_are_not_as_defined_are_refused(world: World, body: str, expected: str) -> None:
    with pytest.raises(StageError, match=expected):
        world.run(Plan("p", (world.stage("s", body),)))


def test_a_symlink_inside_a_folder_output_is_refused(world: World) -> None:
    body = 'job.output("out").mkdir()\n(job.output("out") / "link").symlink_to("/etc")'
    with pytest.raises(StageError, match="link: expected a plain file, found a symbolic link"):
        world.run(Plan("p", (world.stage("s", body, Output("out", OutputKind.FILES)),)))


def test_folders_travel_as_paths_and_content(world: World) -> None:
    write = """
    for path in ("b/c", "a"):
        target = job.output("out") / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(path)
        target.chmod(0o755)
    """
    read = """
    found = sorted(str(p.relative_to(job.input("in"))) for p in job.input("in").rglob("*") if p.is_file())
    job.output("out").write_text(" ".join(found))
    """
    writes = world.stage("writes", write, Output("out", OutputKind.FILES))
    reads = world.stage("reads", read, inputs={"in": StageOutput("writes", "out")})
    results = world.run(Plan("p", (writes, reads)))
    assert world.read(results, "reads") == "a b/c"
    assert results.output("writes", "out").size == 4


def test_externals_and_recipe_files_are_read_only_copies_in_the_job(world: World) -> None:
    (world.root / "layout" / "deep").mkdir(parents=True)
    (world.root / "layout" / "deep" / "blob").write_text("blob")
    world.externals = {"layout": world.root / "layout"}
    body = 'job.output("out").write_text((job.input("in") / "deep" / "blob").read_text())'
    plan = Plan("p", (world.stage("s", body, inputs={"in": External("layout")}),))
    assert world.read(world.run(plan), "s") == "blob"
    (world.root / "layout" / "deep" / "blob").write_text("other")
    assert world.read(world.run(plan), "s") == "other"


def test_an_external_that_was_not_handed_in_is_wrong_use(world: World) -> None:
    plan = Plan("p", (world.stage("s", "pass", inputs={"in": External("layout")}),))
    with pytest.raises(UsageError, match="'layout' was not handed in"):
        world.run(plan)


@pytest.mark.parametrize("escape", ["../secret", "link", "folder/secret"])
def test_a_recipe_path_that_escapes_is_refused(world: World, escape: str) -> None:
    (world.root / "secret").write_text("secret")
    (world.recipe / "link").symlink_to(world.root / "secret")
    (world.recipe / "folder").symlink_to(world.root)
    plan = Plan("p", (world.stage("s", COPY, inputs={"in": RecipeFile(escape)}),))
    with pytest.raises(RecipeError, match="outside the recipe's folder"):
        world.run(plan)
    with pytest.raises(RecipeError, match="outside the recipe's folder"):
        local.cached(plan, ["s"], world.sources(), world.store)


def test_a_missing_recipe_file_is_named(world: World) -> None:
    plan = Plan("p", (world.stage("s", COPY, inputs={"in": RecipeFile("gone")}),))
    with pytest.raises(RecipeError, match="recipe/gone: expected a file, found nothing"):
        world.run(plan)


def test_a_link_inside_the_recipe_folder_is_followed(world: World) -> None:
    (world.recipe / "real").write_text("real")
    (world.recipe / "link").symlink_to("real")
    plan = Plan("p", (world.stage("s", COPY, inputs={"in": RecipeFile("link")}),))
    assert world.read(world.run(plan), "s") == "real"


def test_modes_bytecode_and_untouched_files_of_a_program_do_not_count(world: World) -> None:
    plan = chain(world)
    world.run(plan)
    program = world.root / "project" / "stages" / "second"
    (program / "__pycache__").mkdir()
    (program / "__pycache__" / "x.pyc").write_bytes(b"x")
    (program / "stale.pyc").write_bytes(b"x")
    (program / "__main__.py").chmod(0o755)
    (world.root / "project" / "README").write_text("x")
    assert isinstance(local.cached(plan, ["third"], world.sources(), world.store), local.Results)


def test_network_stages_get_transport_and_proxies_and_others_get_neither(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("https_proxy", "http://proxy.invalid:1")
    monkeypatch.setenv("SECRET", "secret")
    body = """
    import json
    told = {"environment": dict(os.environ), "transport": None}
    told["folder"] = os.getcwd() == str(job.folder / "program")
    if (job.folder / "transport.json").exists():
        told["transport"] = dict(job.transport())
    job.output("out").write_text(json.dumps(told))
    """
    plan = Plan("p", (world.stage("mirror", body, network=True), world.stage("plain", body)))
    results = world.run(
        plan, "mirror", "plain", transport=local.Transport(("http://archive.invalid",), (Path("/pool"),))
    )
    mirror, plain = (json.loads(world.read(results, name)) for name in ("mirror", "plain"))
    assert mirror["transport"] == {
        "archives": ["http://archive.invalid"],
        "pools": ["/pool"],
        "store": str(world.store.root / "blobs" / "sha256"),
        "partial": str(world.store.root / "partial"),
    }
    assert plain["transport"] is None
    assert mirror["environment"]["https_proxy"] == "http://proxy.invalid:1"
    assert set(mirror["environment"]) - set(TRANSPORT_VARIABLES) == set(plain["environment"])
    assert set(plain["environment"]) == {"PATH", "LC_ALL", "TZ", "SOURCE_DATE_EPOCH"}
    assert plain["folder"]


def test_accelerators_outlive_their_stage(world: World) -> None:
    body = """
    counted = job.cache("ccache") / "count"
    counted.write_text((counted.read_text() if counted.exists() else "") + "x")
    job.output("out").write_text(job.params["n"])
    """
    for number in ("1", "2"):
        world.run(Plan("p", (world.stage("s", body, params={"n": number}, accelerators=("ccache",)),)))
    assert (world.store.root / "accelerators" / "ccache" / "count").read_text() == "xx"


def test_a_program_edited_while_its_key_is_in_use_is_refused(world: World) -> None:
    edit = 'open(job.params["edit"], "a").write("# edited")\njob.output("out").write_text("")'
    later = world.root / "project" / "stages" / "later" / "__main__.py"
    edits = world.stage("edits", edit, params={"edit": str(later)})
    reads = world.stage(
        "later", 'job.output("out").write_text("")', inputs={"in": StageOutput("edits", "out")}
    )
    sources = world.sources()
    sources.program(reads.program)  # as a run does for every stage whose inputs are known early
    with world.store.use(), pytest.raises(UsageError, match="changed while the build ran"):
        local.run(
            Plan("p", (edits, reads)), ["later"], sources, world.store,
            transport=local.Transport(), reporter=world.heard,
        )  # fmt: skip


# Processes: the same run as a process of its own, to be killed or doubled.

RUNNER = """
import json, sys
from pathlib import Path
from pipelines.store import Store
from tests.pipelines.executor import World, became
from tests.pipelines import test_local
world = World(Path(sys.argv[1]), Store(Path(sys.argv[1]) / "store"))
results = world.run(getattr(test_local, sys.argv[2])(world))
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
