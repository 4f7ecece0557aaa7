"""The Dagger executor's decisions, over an engine that runs nothing."""

from __future__ import annotations

from collections.abc import Callable
from io import StringIO
from pathlib import Path

import anyio
import pytest

from pipelines.dagger_containers import Given
from pipelines.dagger_executor import Build
from pipelines.definition import Input, Output, OutputKind, Plan, Program, RecipeFile, Stage, StageOutput
from pipelines.engine import Exec, ExecFailed
from pipelines.errors import StageError
from pipelines.progress import Plain
from pipelines.sources import Sources
from tests.pipelines.engine_recorder import Recorder, command, content_of

JOB = ("stages/__init__.py", "stages/shared/__init__.py", "stages/shared/job.py")


def stage(
    name: str, inputs: dict[str, Input] | None = None, tools: str = "", params: dict[str, str] | None = None
) -> Stage:
    kind = OutputKind.FILES if name.startswith("mirror") else OutputKind.FILE
    return Stage(
        name=name,
        program=Program("stages.mirror", JOB),
        source_date_epoch=1,
        outputs=(Output("out", kind),),
        params=params or {},
        inputs=inputs or {},
        tools=StageOutput(tools, "out") if tools else None,
        network=name.startswith("mirror"),
    )


def chain(**params: str) -> Plan:
    """mirror → tools → packages (in tools, reading a recipe file) → image."""
    return Plan(
        "chain",
        (
            stage("mirror", params=params),
            stage("tools", {"repository": StageOutput("mirror", "out")}),
            stage(
                "packages", {"file": RecipeFile("motd"), "all": StageOutput("mirror", "out")}, tools="tools"
            ),
            stage("image", {"tree": StageOutput("packages", "out")}, tools="tools"),
        ),
    )


@pytest.fixture
def built(tmp_path: Path) -> Callable[..., list[str]]:
    """Run a plan on a recorder; gives the stages whose programs ran."""
    (tmp_path / "motd").write_text("hello\n")

    def run(recorder: Recorder, plan: Plan | None = None, said: StringIO | None = None) -> list[str]:
        recorder.asked.clear()
        given = Given(recipe_files={"motd": "recipe:motd"})
        sources = Sources(recipe=tmp_path)
        logs = tmp_path / "logs"
        build = Build(plan or chain(), sources, recorder, given, Plain(said or StringIO()), logs)
        anyio.run(build.run, ["image"])
        return recorder.ran()

    return run


def test_a_second_run_asks_for_lookups_alone(built: Callable[..., list[str]]) -> None:
    recorder = Recorder()
    assert built(recorder) == ["mirror", "tools", "packages", "image"]
    assert built(recorder) == []
    assert {command(asked)[0] for asked in recorder.asked} == {"find"}
    assert not any(asked.fresh for asked in recorder.asked), "a cached answer of the engine would do"


def test_equal_output_stops_the_work(built: Callable[..., list[str]]) -> None:
    recorder = Recorder()
    built(recorder)
    said = StringIO()
    assert built(recorder, chain(comment="new"), said) == ["mirror"]
    assert "stage mirror: parameter comment is new" in said.getvalue()


def test_another_output_runs_what_reads_it(built: Callable[..., list[str]]) -> None:
    def content(stage: str, name: str, asked: Exec) -> str:
        return asked.texts["/stage/job.json"] if stage == "mirror" else content_of(stage, name, asked)

    recorder = Recorder(content)
    built(recorder)
    assert built(recorder, chain(comment="new")) == ["mirror", "tools", "packages"]


def test_a_changed_recipe_file_runs_its_stage(built: Callable[..., list[str]], tmp_path: Path) -> None:
    recorder = Recorder()
    built(recorder)
    (tmp_path / "motd").write_text("other\n")
    said = StringIO()
    assert built(recorder, said=said) == ["packages"]
    assert "input file (motd) changed from" in said.getvalue()


def test_inputs_are_fetched_only_for_what_runs(built: Callable[..., list[str]], tmp_path: Path) -> None:
    recorder = Recorder()
    built(recorder)
    (tmp_path / "motd").write_text("other\n")
    built(recorder)
    fetched = [command(asked)[1] for asked in recorder.asked if command(asked)[0] == "fetch"]
    assert sorted(fetched) == sorted([recorder.last["mirror"], recorder.last["tools"]])


def test_a_poisoned_result_is_removed_and_its_stage_runs_again(
    built: Callable[..., list[str]], tmp_path: Path
) -> None:
    recorder = Recorder()
    built(recorder)
    recorder.damaged.add(recorder.last["tools"])
    (tmp_path / "motd").write_text("other\n")
    said = StringIO()
    assert built(recorder, said=said) == ["tools", "packages"]
    assert "expected sha256 aa, found bb: stage tools runs again" in said.getvalue()
    assert recorder.last["tools"] in recorder.results


def test_a_lost_result_that_comes_out_different_is_an_error(
    built: Callable[..., list[str]], tmp_path: Path
) -> None:
    contents = iter(range(100))

    def content(stage: str, name: str, asked: Exec) -> str:
        return str(next(contents)) if stage == "tools" else content_of(stage, name, asked)

    recorder = Recorder(content)
    built(recorder)
    recorder.damaged.add(recorder.last["tools"])
    (tmp_path / "motd").write_text("other\n")
    with pytest.raises(StageError, match=r"expected file:.*, as its lost result had, found file:"):
        built(recorder)


def test_an_empty_volume_runs_everything(built: Callable[..., list[str]]) -> None:
    recorder = Recorder()
    built(recorder)
    recorder.results.clear()
    recorder.last.clear()
    assert built(recorder) == ["mirror", "tools", "packages", "image"]


def test_a_result_that_cannot_be_kept_is_no_failure(built: Callable[..., list[str]]) -> None:
    class Full(Recorder):
        async def execute(self, asked: Exec):  # type: ignore[no-untyped-def]
            if command(asked)[0] == "keep":
                raise ExecFailed(1, "", "OSError: [Errno 28] No space left on device\n")
            return await super().execute(asked)

    said = StringIO()
    assert built(Full(), said=said) == ["mirror", "tools", "packages", "image"]
    assert "stage image: its result could not be kept: OSError: [Errno 28] No space left" in said.getvalue()


def test_a_failure_speaks_as_the_stage_did(built: Callable[..., list[str]], tmp_path: Path) -> None:
    told = '@error {"what": "dpkg broke", "hint": "mend it", "code": "install", "details": ["a"]}\n'
    recorder = Recorder(failing={"packages": ExecFailed(1, "unpacking\nbroken\n", told)})
    said = StringIO()
    with pytest.raises(StageError) as caught:
        built(recorder, said=said)
    error = caught.value
    assert (error.stage, error.what, error.hint) == ("packages", "dpkg broke", "mend it")
    assert (error.code, error.details) == ("install", ("a",))
    assert error.log == tmp_path / "logs" / "packages.log"
    assert error.log.read_text() == "unpacking\nbroken\n"
    assert "    broken" in said.getvalue()
    assert "image" not in recorder.ran()


@pytest.mark.parametrize(("code", "shown"), [(2, "exit code 2"), (137, "signal 9")])
def test_a_failure_without_words_says_how_it_ended(
    built: Callable[..., list[str]], code: int, shown: str
) -> None:
    recorder = Recorder(failing={"tools": ExecFailed(code, "", "Killed\n")})
    with pytest.raises(StageError, match=rf"ended with {shown}, expected exit code 0 \(Killed\)"):
        built(recorder)


def test_nothing_of_the_machine_is_in_a_lookup(built: Callable[..., list[str]]) -> None:
    recorder = Recorder()
    built(recorder)
    for asked in recorder.asked:
        if command(asked)[0] == "find":
            assert not asked.texts
            assert not asked.files
            assert not asked.folders
            assert list(asked.volumes) == ["/results"]


def test_explain_runs_no_program(built: Callable[..., list[str]], tmp_path: Path) -> None:
    recorder = Recorder()
    built(recorder)
    (tmp_path / "motd").write_text("other\n")
    recorder.asked.clear()
    sources, given = Sources(recipe=tmp_path), Given(recipe_files={"motd": "recipe:motd"})
    build = Build(chain(), sources, recorder, given, Plain(StringIO()), tmp_path)
    found = anyio.run(build.explain)
    assert [(one.stage, one.result) for one in found] == [
        ("mirror", "cached"),
        ("tools", "cached"),
        ("packages", "runs"),
        ("image", "waits"),
    ]
    assert recorder.ran() == []
