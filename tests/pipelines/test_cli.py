"""The command as a process: its exit code and its output, whatever is wrong with where that goes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path

import pytest

from pipelines.cli import main
from pipelines.commands import explain


def run(
    *argv: str, stdout: int = subprocess.PIPE, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pipelines", *argv],
        stdout=stdout,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONUNBUFFERED": "", **(environment or {})},
        encoding="utf-8",
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    "environment",
    [{"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, {"LC_ALL": "C.UTF-8"}],
    ids=["ascii", "utf-8"],
)
@pytest.mark.parametrize("where", ["out", "err"])
def test_a_name_that_the_terminal_does_not_know_is_escaped(
    where: str, environment: dict[str, str], tmp_path: Path
) -> None:
    layout = tmp_path / os.fsdecode(b"na\xff\xc3\xbcme")
    if where == "out":
        # `trust show` prints the path that it was given.
        assert run("trust", "init", str(layout), environment=environment).returncode == 0
        done = run("trust", "show", str(layout), environment=environment)
        assert done.returncode == 0
    else:
        done = run("trust", "show", str(layout), environment=environment)
        assert done.returncode == 1
        assert "na\\udcff" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "argv", [("--help",), ("trust", "show", "TRUST"), ("trust", "show", "TRUST", "--json")]
)
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_output_without_space_fails_and_says_so(
    argv: tuple[str, ...], unbuffered: str, tmp_path: Path
) -> None:
    assert run("trust", "init", str(tmp_path / "trust")).returncode == 0
    with open("/dev/full", "wb") as full:
        words = [str(tmp_path / "trust") if word == "TRUST" else word for word in argv]
        done = run(*words, stdout=full.fileno(), environment={"PYTHONUNBUFFERED": unbuffered})
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "No space left on device\n  to do: " in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_output_that_nobody_reads_any_more_is_no_traceback(unbuffered: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = run("--help", stdout=writer, environment={"PYTHONUNBUFFERED": unbuffered})
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.parametrize(
    "argv", [["verify", "x", "--json"], ["nonsense", "--json"], ["push", "--json", "x", "Not//Ref"]]
)
def test_wrong_use_is_one_object_too(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(argv)
    out, err = capsys.readouterr()
    assert ended.value.code == 2
    assert json.loads(out).keys() == {"error", "hint", "stage"}
    assert err.startswith("error: ")


def test_a_fault_shows_no_traceback_and_nothing_that_may_be_secret(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(args: Namespace) -> int:
        raise ValueError("s3cret")

    monkeypatch.setattr(explain, "run", fails)
    with pytest.raises(SystemExit) as ended:
        main(["explain", "recipe", "--json"])
    out, err = capsys.readouterr()
    assert ended.value.code == 1
    assert json.loads(out)["error"] == "a fault in disk-image: ValueError"
    assert "s3cret" not in out + err
    with pytest.raises(ValueError, match="s3cret"):
        main(["explain", "recipe", "--debug"])


def test_an_interrupt_ends_as_shells_expect_and_is_one_object() -> None:
    waits = "import time; from pipelines.cli import main; from pipelines.commands import explain; "
    waits += "explain.run = lambda args: (print('here', flush=True), time.sleep(60)); main()"
    waiting = subprocess.Popen(
        [sys.executable, "-c", waits, "explain", "recipe", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert waiting.stdout is not None
    assert waiting.stdout.readline() == "here\n"
    waiting.send_signal(signal.SIGINT)
    out, err = waiting.communicate(timeout=60)
    assert waiting.returncode == 130
    assert json.loads(out)["error"] == "interrupted"
    assert err == "error: interrupted\n  to do: the same command goes on where this one stopped\n"
