"""What is packaged beside the program: systemd's units, as systemd judges them, and Prometheus' alerts."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipelines.cli import parser
from platform_server.backup import format
from platform_server.gauges import described
from platform_server.settings import Limits
from tests.platform_server.backups import members
from tests.platform_server.made import Made

ROOT = Path(__file__).parents[2]
UNITS = ROOT / "packaging" / "systemd"
RULES = ROOT / "packaging" / "prometheus" / "disk-image-platform.rules.yml"
PROGRAM = "/opt/disk-image/.venv/bin/disk-image"

systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")


@pytest.fixture
def units(tmp_path: Path) -> list[Path]:
    """The units, where the program is one that this machine has."""
    copies = []
    for unit in sorted(UNITS.iterdir()):
        copy = tmp_path / unit.name
        copy.write_text(unit.read_text().replace(PROGRAM, "/bin/true"))
        copies.append(copy)
    return copies


def _analyze(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["systemd-analyze", *arguments], capture_output=True, text=True, check=False)


@systemd
def test_systemd_finds_nothing_wrong_with_the_units(units: list[Path]) -> None:
    found = _analyze("verify", "--man=no", *units)
    assert (found.returncode, found.stdout, found.stderr) == (0, "", "")


@systemd
def test_systemd_finds_little_that_a_service_could_do_to_the_machine(units: list[Path]) -> None:
    services = [unit for unit in units if unit.suffix == ".service"]
    assert services
    for service in services:
        # of 100; without any sandbox a service has 96
        found = _analyze("security", "--no-pager", "--offline=true", "--threshold=15", service)
        assert found.returncode == 0, found.stdout


def test_the_units_commands_are_ones_that_there_are() -> None:
    commands = [_started(unit) for unit in sorted(UNITS.glob("*.service"))]
    assert len(commands) == 2
    for program, *arguments in commands:
        assert program == PROGRAM
        parser().parse_args([each for each in arguments if not each.startswith("$")])


def _lines(unit: Path, name: str) -> list[str]:
    """The values of a setting, without systemd's own escapes."""
    found = re.findall(rf"^{name}=(.*)$", unit.read_text(), re.M)
    return [each.replace("%%", "%").replace("$$", "$") for each in found]


def _started(unit: Path) -> list[str]:
    """The words of the program that a service starts, out of the shell's as well."""
    (line,) = _lines(unit, "ExecStart")
    words = shlex.split(line)
    if words[:2] == ["/bin/sh", "-c"]:
        words = shlex.split(words[2])
        assert words.pop(0) == "exec"
    return words


def test_the_backup_is_sandboxed_as_the_platform_is() -> None:
    backup, main = (
        unit.read_text().partition("NoNewPrivileges")[2].partition("[Install]")[0].split()
        for unit in sorted(UNITS.glob("*.service"))
    )
    assert backup == main
    assert len(main) > 20


def test_the_backup_service_backs_up_and_deletes_what_is_old(made: Made, tmp_path: Path) -> None:
    """Its own two commands, with the folders of this machine."""
    unit = UNITS / "disk-image-platform-backup.service"
    backups = tmp_path / "backups"
    backups.mkdir()
    environment = {**os.environ, "BACKUP_OPTIONS": "--without-key", "PYTHONPATH": str(ROOT)}
    if made.database is not None:
        environment["DISK_IMAGE_PLATFORM_DATABASE"] = made.database
    for name, days in (("old.backup", 32), ("killed.backup.part", 32), ("new.backup", 29), ("notes", 400)):
        (backups / name).touch()
        at = time.time() - days * 24 * 3600
        os.utime(backups / name, (at, at))
    for name in ("ExecStart", "ExecStartPost"):
        (line,) = _lines(unit, name)
        for told, here in (
            (PROGRAM, f"{sys.executable} -m pipelines"),
            ("/var/lib/disk-image-backups", str(backups)),
            ("/var/lib/disk-image", str(made.folder)),
        ):
            line = line.replace(told, here)
        done = subprocess.run(
            shlex.split(line), env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
    left = {path.name for path in backups.iterdir()}
    (backup,) = left - {"new.backup", "notes"}
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d{6}Z\.backup", backup)
    assert left == {backup, "new.backup", "notes"}
    assert format.KEY not in dict(members(backups / backup))


def test_the_service_manager_waits_as_long_as_the_end_may_take() -> None:
    unit = (UNITS / "disk-image-platform.service").read_text()
    (seconds,) = re.findall(r"^TimeoutStopSec=(\d+)$", unit, re.M)
    assert int(seconds) > Limits().drain_seconds + Limits().stop_seconds + 15


def _alerts() -> dict[str, str]:
    found = re.findall(r"^ +- alert: (\w+)\n +expr: (.+)$", RULES.read_text(), re.M)
    assert len(found) == RULES.read_text().count("- alert:")
    return dict(found)


def test_every_metric_of_an_alert_exists() -> None:
    names = {f"{each.name}_total" if each.type == "counter" else each.name for each in described()}
    names |= {f"{each.name}_bucket" for each in described() if each.type == "histogram"}
    alerts = _alerts()
    assert alerts
    for alert, expression in alerts.items():
        used = set(re.findall(r"\b(?:disk_image|process)_\w+", expression))
        assert used <= names, alert
        assert used or expression.startswith("up{"), alert


def test_every_label_value_of_an_alert_is_one_of_the_platforms() -> None:
    """Those that are matched exactly: a word that is never used never matches."""
    source = "\n".join(path.read_text() for path in (ROOT / "platform_server").rglob("*.py"))
    for expression in _alerts().values():
        for label, value in re.findall(r'(\w+)!?="([^"]+)"', expression):
            assert label == "job" or f'"{value}"' in source, value


def test_every_alert_has_its_paragraph_of_what_to_do() -> None:
    page = (
        (ROOT / "docs" / "how-to" / "watch-a-platform.md").read_text().partition("## When it turns red")[2]
    )
    assert re.findall(r"^\| `(\w+)` \|", page, re.M) == list(_alerts())


def test_promtool_takes_the_rules() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("needs promtool, of Debian's package prometheus")
    found = subprocess.run([promtool, "check", "rules", RULES], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
