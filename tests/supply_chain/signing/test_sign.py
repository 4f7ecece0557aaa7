"""Signing a layout: what hangs on the image afterwards, and what is not signed twice."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping
from pathlib import Path

import anyio
import pytest
from syrupy.assertion import SnapshotAssertion

from pipelines.cli import main
from pipelines.errors import UsageError
from supply_chain.beside import build_record_path, sbom_path
from supply_chain.errors import LayoutError, SigningError, TokenError, TrustError
from supply_chain.layout import Layout, open_layout
from supply_chain.oci import DOCUMENT_LIMIT
from supply_chain.referrer import read_referrer
from supply_chain.signing.sign import KINDS, SignResult, sign_layout
from supply_chain.statement import PROVENANCE, SBOM, SIGNATURE, Statement
from supply_chain.trust import Trust, init_embedded, load_trust
from supply_chain.verify.bundle import BundleVerifier, VerifiedBundle
from supply_chain.verify.policy import signer_policy
from tests.supply_chain.signing.layouts import built, sbom, write_record

BUILDER = "https://git.example/os/images/.gitea/workflows/build.yml@refs/heads/main"


@pytest.fixture(scope="session")
def trust(tmp_path_factory: pytest.TempPathFactory) -> Trust:
    """An embedded trust whose services run while something is signed."""
    folder = tmp_path_factory.mktemp("trust") / "trust"
    init_embedded(folder)
    return load_trust(folder)


def sign(
    layout: Layout, trust: Trust, identity: str | None = None, environment: Mapping[str, str] | None = None
) -> SignResult:
    async def signing() -> SignResult:
        return await sign_layout(layout.folder, trust, environment or {}, identity=identity)

    return anyio.run(signing)


def verified(layout: Layout, trust: Trust, result: SignResult) -> dict[str, VerifiedBundle]:
    """The bundles of a result, each read from the layout and verified as its signer's."""
    layout = open_layout(layout.folder)
    listed = {entry.digest: entry for entry in layout.index.manifests}
    policy = signer_policy(identity=result.identity, issuer=result.issuer)
    found = {}
    for kind, digest in result.manifests.items():
        content = layout.read(listed[digest], limit=DOCUMENT_LIMIT)
        bundle = read_referrer(content, layout.image.digest, kind)
        assert bundle is not None
        found[kind] = BundleVerifier(trust.root).verify(layout.read(bundle, limit=1 << 20), policy, kind)
    return found


def test_an_image_is_signed(tmp_path: Path, trust: Trust, snapshot: SnapshotAssertion) -> None:
    layout = built(tmp_path / "image")
    result = sign(layout, trust, BUILDER)
    assert (result.digest, result.identity, result.signed) == (layout.image.digest, BUILDER, True)
    assert list(result.manifests) == [SIGNATURE, SBOM, PROVENANCE]
    bundles = verified(layout, trust, result)
    assert len({bundle.signer for bundle in bundles.values()}) == 1
    statements = {kind: bundle.statement for kind, bundle in bundles.items()}
    assert statements[SIGNATURE].predicate == {}
    assert statements[SBOM].predicate == sbom(layout.image.hex)
    assert _as_json(statements) == snapshot


def _as_json(statements: Mapping[str, Statement]) -> str:
    return json.dumps(
        [one.model_dump(by_alias=True, exclude_none=True) for one in statements.values()], indent=1
    )


def test_the_image_stays_as_it_is_and_comes_first(tmp_path: Path, trust: Trust) -> None:
    layout = built(tmp_path / "image")
    before = {path: path.read_bytes() for path in (layout.folder / "blobs").rglob("*") if path.is_file()}
    sign(layout, trust)
    after = open_layout(layout.folder)
    after.check()
    assert after.image == layout.image
    assert len(after.index.manifests) == 4
    assert all(path.read_bytes() == content for path, content in before.items())


def test_nothing_is_signed_twice(tmp_path: Path, trust: Trust) -> None:
    layout = built(tmp_path / "image")
    first = sign(layout, trust, BUILDER)
    index, log = (layout.folder / "index.json").read_bytes(), entries(trust)
    again = sign(layout, trust, BUILDER)
    assert (again.signed, again.manifests, again.identity) == (False, first.manifests, BUILDER)
    assert ((layout.folder / "index.json").read_bytes(), entries(trust)) == (index, log)


def test_three_who_sign_at_once_sign_once(tmp_path: Path, trust: Trust) -> None:
    layout = built(tmp_path / "image")
    ended: list[SignResult | LayoutError] = []

    async def one() -> None:
        try:
            ended.append(await sign_layout(layout.folder, trust, {}, identity=BUILDER))
        except LayoutError as error:
            ended.append(error)

    async def all_three() -> None:
        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(one)

    anyio.run(all_three)
    signed = [each for each in ended if isinstance(each, SignResult)]
    refused = [each for each in ended if isinstance(each, LayoutError)]
    assert [each.signed for each in signed] == [True]
    assert {each.what for each in refused} == {f"{layout.folder}: another process is signing it"}
    assert len(refused) == 2
    assert len(open_layout(layout.folder).index.manifests) == 4
    assert not sign(layout, trust, BUILDER).signed


def entries(trust: Trust) -> tuple[int, int]:
    """How long the logs of an embedded trust are: the transparency log's and the certificate log's files."""
    size = [
        sum(path.stat().st_size for path in (trust.path / "private" / name).rglob("*") if path.is_file())
        for name in ("log", "ct")
    ]
    return size[0], size[1]


def test_another_run_of_the_same_build_is_not_signed_again(tmp_path: Path, trust: Trust) -> None:
    layout = built(tmp_path / "image")
    sign(layout, trust)
    path = build_record_path(layout.folder)
    path.write_bytes(path.read_bytes().replace(b"2026-01-02", b"2026-02-03"))
    assert not sign(layout, trust).signed


def test_what_is_new_is_signed_and_takes_the_place_of_the_old(tmp_path: Path, trust: Trust) -> None:
    layout = built(tmp_path / "image")
    old = sign(layout, trust)
    write_record(layout, internalParameters={"stageEnvironment": 2})
    new = sign(layout, trust)
    assert new.signed
    assert not set(old.manifests.values()) & set(new.manifests.values())
    listed = [entry.digest for entry in open_layout(layout.folder).index.manifests[1:]]
    assert listed == [new.manifests[kind] for kind in KINDS]


@pytest.mark.parametrize("log", ["ct", "log"])
def test_a_full_disk_under_the_trust_is_said_and_then_it_is_signed(
    tmp_path: Path, log: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = built(tmp_path / "image")
    init_embedded(tmp_path / "trust")
    trust, folder = load_trust(tmp_path / "trust"), tmp_path / "trust" / "private" / log
    sync, tried = os.fsync, []

    def full(descriptor: int) -> None:
        if os.readlink(f"/proc/self/fd/{descriptor}") == str(folder / "entries"):
            tried.append(descriptor)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SigningError) as refused:
        sign(layout, trust)
    assert f"{folder}: No space left on device: make room there" in refused.value.what
    assert refused.value.hint.startswith("mend that where the service runs, then run the same command again")
    assert len(tried) == 1
    monkeypatch.undo()
    assert sign(layout, trust).signed


def test_other_signers_stay(tmp_path: Path, trust: Trust) -> None:
    layout = built(tmp_path / "image")
    init_embedded(tmp_path / "other")
    other = load_trust(tmp_path / "other")
    results = [sign(layout, trust, "one@localhost"), sign(layout, trust), sign(layout, other)]
    assert all(result.signed for result in results)
    listed = [entry.digest for entry in open_layout(layout.folder).index.manifests[1:]]
    assert listed == [digest for result in results for digest in result.manifests.values()]
    for result, by in zip(results, (trust, trust, other), strict=True):
        verified(layout, by, result)


def test_a_missing_statement_is_signed_again(tmp_path: Path, trust: Trust) -> None:
    layout = built(tmp_path / "image")
    sign(layout, trust)
    index = open_layout(layout.folder).index
    shorter = index.model_copy(update={"manifests": index.manifests[:-1]})
    (layout.folder / "index.json").unlink()
    (layout.folder / "index.json").write_bytes(shorter.to_bytes())
    assert sign(layout, trust).signed
    assert len(open_layout(layout.folder).index.manifests) == 4


def _no_sbom(layout: Layout) -> None:
    sbom_path(layout.folder).unlink()


def _another_sbom(layout: Layout) -> None:
    path = sbom_path(layout.folder)
    path.write_bytes(path.read_bytes().replace(layout.image.hex.encode(), b"ab" * 32))


def _no_record(layout: Layout) -> None:
    build_record_path(layout.folder).unlink()


def _another_record(layout: Layout) -> None:
    path = build_record_path(layout.folder)
    path.write_bytes(path.read_bytes().replace(layout.image.hex.encode(), b"ab" * 32))


def _changed_manifest(layout: Layout) -> None:
    path = layout.path(layout.image)
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content.replace(b"vmlinuz", b"vmlinux"))


@pytest.mark.parametrize(
    ("attack", "said"),
    [
        (_no_sbom, r"image\.sbom\.json: No such file"),
        (_another_sbom, r"image\.sbom\.json: expected it to be about sha256:.*, found sha256:abab"),
        (_no_record, r"image\.build\.json: No such file"),
        (_another_record, r"image\.build\.json: expected it to be about sha256:.*, found sha256:abab"),
        (_changed_manifest, "its content's digest is"),
    ],
)
def test_what_was_not_built_together_is_not_signed(
    attack: object, said: str, tmp_path: Path, trust: Trust
) -> None:
    layout = built(tmp_path / "image")
    assert callable(attack)
    attack(layout)
    log = entries(trust)
    with pytest.raises(LayoutError, match=said):
        sign(layout, trust)
    assert entries(trust) == log


def test_a_trust_to_verify_with_signs_nothing(tmp_path: Path, trust: Trust) -> None:
    layout = built(tmp_path / "image")
    with pytest.raises(TrustError, match=r"trusted_root\.json: says whom to trust, but not where to sign"):
        sign(layout, load_trust(trust.path / "trusted_root.json"))


def test_only_an_embedded_trust_signs_as_whom_one_says(tmp_path: Path, trust: Trust) -> None:
    layout = built(tmp_path / "image")
    with pytest.raises(UsageError, match=r"--as me@localhost: .*trust\.json is no embedded trust"):
        sign(layout, load_trust(trust.path / "trust.json"), "me@localhost")


def test_without_a_token_nothing_is_asked(tmp_path: Path, trust: Trust) -> None:
    layout = built(tmp_path / "image")
    with pytest.raises(TokenError, match="no identity token: none of DISK_IMAGE_IDENTITY_TOKEN") as caught:
        sign(layout, load_trust(trust.path / "trust.json"))
    assert "id-token: write" in caught.value.hint


def run(*words: str) -> object:
    """The command's exit code."""
    with pytest.raises(SystemExit) as ended:
        main([*words])
    return ended.value.code


def test_the_command(tmp_path: Path, trust: Trust, capsys: pytest.CaptureFixture[str]) -> None:
    layout = built(tmp_path / "image")
    words = ["sign", str(layout.folder), "--trust", str(trust.path), "--as", BUILDER]
    assert run(*words, "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["manifest_digest"] == layout.image.digest
    assert (printed["signed"], printed["identity"], list(printed["referrers"])) == (True, BUILDER, [*KINDS])
    assert run(*words) == 0
    assert capsys.readouterr().out == (
        f"{layout.folder}: {layout.image.digest} was already signed\n"
        f"as {BUILDER}, vouched for by {printed['issuer']}\n"
    )


def test_the_command_says_what_to_do(
    tmp_path: Path, trust: Trust, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = built(tmp_path / "image")
    for name in ("DISK_IMAGE_IDENTITY_TOKEN", "ACTIONS_ID_TOKEN_REQUEST_URL", "SIGSTORE_ID_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    assert run("sign", str(layout.folder), "--trust", str(trust.path / "trust.json")) == 1
    error, hint = capsys.readouterr().err.splitlines()
    assert error.startswith("error: no identity token")
    assert hint.startswith("  to do: in a forge's job")
