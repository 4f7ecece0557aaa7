"""What a person sees: lines, rates, the table; never a word on standard output."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from syrupy.assertion import SnapshotAssertion

from pipelines.local import StageResult
from pipelines.progress import Meter, Plain, Reporter, Silent, Terminal, reporter, seconds, size, table

RAN = StageResult("composefs", "ran", 1.234, "never ran", 800_000)
CACHED = StageResult("kernel", "cached", 0.0, "nothing changed: cached", 12_345_678)


class FakeTerminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def _events(to: Reporter) -> None:
    to.started("composefs", "never ran")
    to.progress("composefs", 400_000, 800_000, "bytes")
    to.note("a note with [brackets] and a /path")
    to.finished(CACHED)
    to.finished(RAN)
    to.close([CACHED, RAN])


def test_plain_lines(snapshot: SnapshotAssertion) -> None:
    stream = io.StringIO()
    _events(Plain(stream))
    assert stream.getvalue() == snapshot


def test_a_failure_in_plain_lines(snapshot: SnapshotAssertion) -> None:
    stream = io.StringIO()
    Plain(stream).failed(
        "kernel",
        Path("/store/logs/p/kernel.log"),
        ["cc: error", "make: ***"],
        "disk-image build r --only kernel",
    )
    assert stream.getvalue() == snapshot


def test_a_terminal_shows_the_stage_while_it_runs_and_the_plain_lines_stay(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    stream = FakeTerminal()
    _events(Terminal(stream))
    shown = stream.getvalue()
    assert "a note with [brackets] and a /path\n" in shown
    assert "stage composefs: ran in 1.2 s, 800 kB\n" in shown
    assert shown.endswith("".join(f"{line}\n" for line in table([CACHED, RAN])))


def test_a_terminal_s_live_line_ends_before_a_failure_s_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    stream = FakeTerminal()
    terminal = Terminal(stream)
    terminal.started("kernel", "never ran")
    terminal.failed("kernel", Path("/log"), ["last [line]"], None)
    assert stream.getvalue().endswith("stage kernel: failed; the last lines of /log:\n    last [line]\n")


def test_long_stages_tell_now_and_then_without_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("pipelines.progress.time.monotonic", lambda: now)
    stream = io.StringIO()
    plain = Plain(stream)
    plain.started("mirror", "never ran")
    for step in range(1, 41):
        now += 1
        plain.progress("mirror", step * 1_000_000, 80_000_000, "bytes")
    assert stream.getvalue().splitlines() == [
        "stage mirror: never ran: running",
        "stage mirror: 15.0 MB of 80.0 MB, 1.00 MB/s, 1 min 05 s left",
        "stage mirror: 30.0 MB of 80.0 MB, 1.00 MB/s, 50 s left",
    ]


def test_nothing_goes_to_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    _events(reporter())
    _events(Silent())
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err != ""


def test_the_stream_decides_the_form() -> None:
    assert type(reporter(io.StringIO())) is Plain
    assert type(reporter(FakeTerminal())) is Terminal


def test_a_meter_forgets_what_is_long_ago() -> None:
    meter = Meter()
    for now in range(10):
        meter.add(0, now)
    meter.add(5000, 10)
    assert meter.rate() == pytest.approx(1000)


def test_a_meter_without_time_has_no_rate() -> None:
    meter = Meter()
    meter.add(5, 1.0)
    assert meter.rate() == 0
    assert meter.text(5, 9, "bytes") == "5 B of 9 B"
    assert meter.text(3, 9, "files") == "3 of 9 files"


@pytest.mark.parametrize(
    ("count", "expected"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.00 kB"), (1234, "1.23 kB"), (12_345, "12.3 kB"),
     (999_600, "1.00 MB"), (123_456_789, "123 MB"), (99_960, "100 kB"), (5 * 10**15, "5000 TB")],
)  # fmt: skip
def test_sizes(count: int, expected: str) -> None:
    assert size(count) == expected


@pytest.mark.parametrize(
    ("duration", "expected"),
    [(0.04, "0.0 s"), (12.0, "12.0 s"), (59.96, "1 min 00 s"), (200, "3 min 20 s"), (3725, "1 h 02 min")],
)
def test_durations(duration: float, expected: str) -> None:
    assert seconds(duration) == expected


def test_a_table_of_nothing_but_cached_stages_is_one_line() -> None:
    assert table([CACHED, CACHED]) == ["nothing changed: 2 stages cached"]
