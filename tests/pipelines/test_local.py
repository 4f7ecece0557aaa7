"""The local executor over bootstrap stages: what runs, what doesn't, what is left when something fails."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from pipelines import local
from pipelines.definition import External, Output, OutputKind, Plan, RecipeFile, StageOutput
from pipelines.errors import RecipeError, StageError, UsageError
from pipelines.job_folder import TRANSPORT_VARIABLES
from pipelines.store import Store
from tests.pipelines.executor import World, became, numbered_plan

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
