"""`disk-image verify`: what people and machines get to see."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from pipelines.cli import main
from supply_chain.statement import SBOM
from tests.supply_chain.verify.forge import IDENTITY, ISSUER, Forge
from tests.supply_chain.verify.signed_image import COMMIT, LOCK, Signed, layout_files, write


class Command:
    """The command, run in this process."""

    def __init__(self, forge: Forge, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self._trust = str(forge.trust.path)
        self._folder = folder
        self._capsys = capsys

    def __call__(self, files: dict[str, bytes], *options: str) -> tuple[int, str, str]:
        """Exit code, standard output and standard error of verifying a layout with these files."""
        layout = write(self._folder / "layout", files)
        with pytest.raises(SystemExit) as ended:
            main(["verify", str(layout), "--trust", self._trust, *options])
        out, err = self._capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return ended.value.code, out, err


@pytest.fixture
def command(forge: Forge, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(forge, tmp_path, capsys)


def test_each_step_gets_a_line(command: Command, signed: Signed, tmp_path: Path) -> None:
    (tmp_path / "lock.json").write_bytes(LOCK)
    code, out, err = command(
        signed.files, "--identity", IDENTITY, "--issuer", ISSUER, "--lock", str(tmp_path / "lock.json")
    )
    assert (code, err) == (0, "")
    steps = [line.split()[:3] for line in out.splitlines()[:7]]
    names = ("manifest", "content", "referrers", "signatures", "sbom", "provenance", "lock")
    assert steps == [[str(number), name, "ok"] for number, name in enumerate(names, 1)]
    assert signed.image.digest in out.splitlines()[7]
    assert IDENTITY in out.splitlines()[8]


def test_a_lock_that_never_ends_is_refused(command: Command, signed: Signed, tmp_path: Path) -> None:
    (tmp_path / "lock.json").write_bytes(b"")
    os.truncate(tmp_path / "lock.json", 1 << 40)
    names = ("--identity", IDENTITY, "--issuer", ISSUER)
    code, _, err = command(signed.files, *names, "--lock", str(tmp_path / "lock.json"))
    assert (code, "expected a lock of at most" in err) == (2, True)
    code, _, err = command(signed.files, *names, "--lock", "/dev/zero")
    assert (code, "not a regular file" in err) == (1, True)


def test_regexps_are_of_the_whole(command: Command, signed: Signed) -> None:
    assert command(signed.files, "--identity-regexp", "https://git[.]example/.*", "--issuer", ISSUER)[0] == 0
    assert command(signed.files, "--identity-regexp", "https://git[.]example/", "--issuer", ISSUER)[0] == 1
    assert command(signed.files, "--identity", IDENTITY, "--issuer-regexp", "git[.]example")[0] == 1


def test_the_step_that_fails_is_the_last_one(command: Command, signed: Signed) -> None:
    left = [(kind, each) for kind, each in signed.bundles.items() if kind != SBOM]
    files = layout_files(signed.image, left)
    code, out, err = command(files, "--identity", IDENTITY, "--issuer", ISSUER)
    assert code == 1
    assert out.splitlines()[-1].split() == ["4", "signatures", "FAILED"]
    failed, hint = err.splitlines()
    assert failed.startswith("error: signatures: expected signature, SBOM and provenance by one trusted")
    assert hint.startswith("  to do: ")


def test_json_for_machines(command: Command, signed: Signed) -> None:
    code, out, err = command(signed.files, "--identity", IDENTITY, "--issuer", ISSUER, "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["git_sha"] == COMMIT
    code, out, _ = command(signed.files, "--identity", "mallory", "--issuer", ISSUER, "--json")
    failed = json.loads(out)
    assert (code, failed["step"]) == (1, "signatures")
    assert failed["expected"]
    assert failed["found"]
    assert failed["hint"]


@pytest.mark.parametrize(
    "options",
    [
        ("--identity", IDENTITY),
        ("--issuer", ISSUER),
        ("--identity", IDENTITY, "--identity-regexp", "x", "--issuer", ISSUER),
        ("--identity-regexp", "(", "--issuer", ISSUER),
        ("--identity-regexp", ".*", "--issuer", ISSUER),
        ("--identity", "", "--issuer", ISSUER),
    ],
)
def test_wrong_use(command: Command, signed: Signed, options: tuple[str, ...]) -> None:
    assert command(signed.files, *options)[0] == 2
