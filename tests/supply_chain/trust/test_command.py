"""`disk-image trust` and `disk-image doctor --trust`, as they are called."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import jwt
import pytest

from pipelines.cli import main
from supply_chain.trust import init_embedded


@pytest.fixture(autouse=True)
def no_token_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [*os.environ]:
        if name.startswith(("ACTIONS_", "SIGSTORE_")) or name == "DISK_IMAGE_IDENTITY_TOKEN":
            monkeypatch.delenv(name)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    init_embedded(tmp_path / "trust")
    return tmp_path / "trust"


def call(*argv: str | Path) -> int:
    with pytest.raises(SystemExit) as ended:
        main([*map(str, argv)])
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_init_shows_what_it_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("trust", "init", tmp_path / "trust", "--port", "9999") == 0
    told = capsys.readouterr().out
    assert "signs as disk-image@localhost, for whom http://127.0.0.1:9999 vouches" in told
    assert call("trust", "init", tmp_path / "trust") == 1
    assert "a trust is never overwritten" in capsys.readouterr().err
    assert call("trust", "show", tmp_path / "trust") == 0
    assert capsys.readouterr().out == told


def test_show_as_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("trust", "show", folder, "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["embedded"] == {"identity": "disk-image@localhost", "issuer": "http://127.0.0.1:9462"}
    assert shown["services"]["transparency_log"] == [{"url": "http://127.0.0.1:9462", "version": 2}]
    assert shown["timestampers"][0]["certificates"][0]["sha256"].startswith("sha256:")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--fulcio", "https://x"], "needs --rekor, --tsa, --issuer, --rekor-key, --ct-key as well"),
        (["--ct-key", "x.pem"], "needs --fulcio, --rekor, --tsa, --issuer, --rekor-key as well"),
        (["--public", "--tsa", "https://x"], "--public and --tsa exclude each other"),
        (["--port", "70000"], "--port 70000"),
        (["--port", "0"], "--port 0"),
    ],
)
def test_init_with_half_an_instance_is_wrong_use(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], given: list[str], message: str
) -> None:
    assert call("trust", "init", tmp_path / "trust", *given) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "trust").exists()


def test_check_asks_and_signs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("trust", "check", folder, "--sign", "--as", "builder@git.example", "--json") == 0
    checks = json.loads(capsys.readouterr().out)["checks"]
    assert [one["ok"] for one in checks] == [True] * 6
    assert "as builder@git.example" in checks[-1]["found"]


def test_check_fails_where_nobody_answers(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trust = folder / "trust.json"
    trust.write_text(trust.read_text().replace(":9462", ":1"))
    assert call("trust", "check", trust) == 1
    told = capsys.readouterr().out
    assert told.count("FAIL") == 4
    assert told.count("to do:") == 4


def test_doctor_asks_too(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call("doctor", "--trust", folder, "--store", tmp_path / "store", "--json")
    checks = {one["check"]: one["ok"] for one in json.loads(capsys.readouterr().out)["checks"]}
    assert checks["python"]
    assert checks["timestamp authority"]


def test_a_token_is_for_whom_is_asked(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for given, subject in (
        ([], "disk-image@localhost"),
        (["--as", "https://git.example/x"], "https://git.example/x"),
    ):
        assert call("trust", "token", folder, *given) == 0
        claims = jwt.decode(capsys.readouterr().out.strip(), options={"verify_signature": False})
        assert (claims["sub"], claims["aud"], claims["iss"]) == (
            subject,
            "sigstore",
            "http://127.0.0.1:9462",
        )
        assert claims["exp"] - claims["iat"] == 300
    assert call("trust", "token", folder, "--as", "nobody") == 1


@pytest.mark.parametrize("action", ["serve", "token"])
def test_only_an_embedded_trust_serves(
    folder: Path, capsys: pytest.CaptureFixture[str], action: str
) -> None:
    assert call("trust", action, folder / "trust.json") == 2
    assert "is no embedded trust" in capsys.readouterr().err


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_serve_until_a_signal(folder: Path, ending: signal.Signals) -> None:
    # any free port: the one in the documents may be somebody's
    for name in ("trust.json", "signing_config.json"):
        path = folder / name
        path.write_text(path.read_text().replace("http://127.0.0.1:9462", "http://127.0.0.1:0"))
    argv = [sys.executable, "-m", "pipelines", "trust", "serve", str(folder), "--json"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as served:
        assert served.stdout is not None
        assert served.stderr is not None
        url = json.loads(served.stdout.readline())["url"]
        assert httpx.get(f"{url}/api/v2/trustBundle").status_code == 200
        served.send_signal(ending)
        assert served.wait(timeout=20) == 0
        assert served.stderr.read() == ""
