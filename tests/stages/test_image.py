"""The image stage: the artifact is as the contract says, byte for byte the same wherever it is made."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from syrupy.assertion import SnapshotAssertion

from stages.image import __main__ as stage
from stages.image import documents, grouping
from stages.image.grouping import BUCKETS, LARGE, MOST_LARGE, MOST_LAYERS, Sourced
from stages.shared import fsverity, packs
from stages.shared.job import Failure, Job
from supply_chain.layout import open_layout

ROOT = Path(__file__).parents[2]
EPOCH = 1_700_000_000
MakeJob = Callable[..., Job]
PARAMS: Mapping[str, Any] = {
    "arch": "amd64",
    "cmdline": ["console=ttyS0", "panic=-1"],
    "variants": ["kernel-initrd-composefs-oci"],
}
CONTENTS = {"bash": b"bash" * 100, "glibc": b"glibc" * 900, "-": b"motd" * 40, "zlib": bytes(range(256)) * 9}


def objects_of(contents: Mapping[str, bytes]) -> tuple[bytes, str]:
    """The tree's bytes and the list of objects in it."""
    lines, at = [], 0
    for source, content in contents.items():
        lines.append(f"{fsverity.digest(content)} {at} {len(content)} {source}\n")
        at += len(content)
    return b"".join(contents.values()), "".join(sorted(lines))


def inputs(folder: Path, **changed: bytes) -> dict[str, Path]:
    folder.mkdir(exist_ok=True)
    tree, objects = objects_of(CONTENTS)
    made: dict[str, bytes] = {
        "vmlinuz": b"a kernel",
        "release": b"6.12.1-test\n",
        "initramfs": b"an initramfs",
        "metadata": b"a metadata image",
        "digest": fsverity.digest(b"a metadata image").encode() + b"\n",
        "objects": objects.encode(),
        "tree": tree,
        **changed,
    }
    for name, content in made.items():
        (folder / name).write_bytes(content)
    return {name: folder / name for name in made}


def build(make_job: MakeJob, files: Mapping[str, Path], **params: Any) -> Path:
    job = make_job("image", {**PARAMS, **params}, inputs=files)
    stage.program(job)
    return job.output("layout")


def contents_of(layout: Path) -> dict[str, str]:
    found = {}
    for path in sorted(layout.rglob("*")):
        if path.is_file():
            found[str(path.relative_to(layout))] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def test_the_documents(make_job: MakeJob, tmp_path: Path, snapshot: SnapshotAssertion) -> None:
    layout = open_layout(build(make_job, inputs(tmp_path / "in")))

    def said(content: bytes) -> Any:
        # Packs' bytes belong to the version of libzstd: their digests and sizes are looked at elsewhere.
        loaded = json.loads(content)
        assert content == json.dumps(loaded, sort_keys=True, separators=(",", ":")).encode()
        for layer in loaded.get("layers", []):
            if layer["annotations"]["org.opencontainers.image.title"].endswith(
                (".pack", "build-manifest.json")
            ):
                layer.update(digest="varies", size=0)
        for name, artifact in loaded.get("artifacts", {}).items():
            if name.endswith(".pack"):
                artifact.update(sha256="varies", size_bytes=0)
        for manifest in loaded.get("manifests", []):
            manifest.update(digest="varies", size=0)
        return loaded

    assert said(layout.manifest_bytes) == snapshot(name="manifest")
    assert said(layout.read(layout.manifest.config, limit=1 << 20)) == snapshot(name="config")
    built = layout.read(layout.layer("build-manifest.json"), limit=1 << 20)
    assert said(built) == snapshot(name="build-manifest")
    assert said((layout.folder / "index.json").read_bytes()) == snapshot(name="index")
    assert (layout.folder / "oci-layout").read_bytes() == b'{"imageLayoutVersion":"1.0.0"}'


def test_the_layout_holds_what_it_says_and_nothing_else(make_job: MakeJob, tmp_path: Path) -> None:
    layout = open_layout(build(make_job, inputs(tmp_path / "in")))
    layout.check()
    named = {layout.path(blob) for blob in (layout.image, *layout.manifest.blobs)}
    files = {path for path in layout.folder.rglob("*") if path.is_file()}
    assert files == named | {layout.folder / "index.json", layout.folder / "oci-layout"}
    built = json.loads(layout.read(layout.layer("build-manifest.json"), limit=1 << 20))
    assert built["artifacts"] == {
        title: {"sha256": layer.hex, "size_bytes": layer.size}
        for title, layer in layout.layers.items()
        if title != "build-manifest.json"
    }


def test_every_object_is_in_one_pack(make_job: MakeJob, tmp_path: Path) -> None:
    layout = open_layout(build(make_job, inputs(tmp_path / "in")))
    found: dict[str, tuple[str, bytes]] = {}
    for title, layer in layout.layers.items():
        if title.endswith(".pack"):
            with packs.open_pack(layout.path(layer)) as pack:
                for digest in pack.entries:
                    assert digest not in found
                    found[digest] = (title, pack.fetch(digest))
    assert {content for _, content in found.values()} == set(CONTENTS.values())
    assert found[fsverity.digest(CONTENTS["-"])][0] == "objects-local.pack"
    assert found[fsverity.digest(CONTENTS["bash"])][0] == f"objects-{grouping.bucket('bash'):02d}.pack"


def test_two_runs_are_identical(make_job: MakeJob, tmp_path: Path) -> None:
    files = inputs(tmp_path / "in")
    assert contents_of(build(make_job, files)) == contents_of(build(make_job, files))


def test_nothing_around_the_stage_reaches_the_image(tmp_path: Path) -> None:
    """umask, time zone, locale, hash seed, host time of the inputs and the folder vary."""
    found = set()
    for number, (umask, env) in enumerate(
        [
            (0o022, {"TZ": "UTC", "LC_ALL": "C.UTF-8", "PYTHONHASHSEED": "0"}),
            (0o077, {"TZ": "Pacific/Kiritimati", "LC_ALL": "C", "PYTHONHASHSEED": "4321"}),
            (0o002, {"TZ": "America/New_York", "LC_ALL": "POSIX", "PYTHONHASHSEED": "77"}),
        ]
    ):
        folder = tmp_path / f"job{'x' * number}"
        (folder / "out").mkdir(parents=True)
        for path in inputs(folder / "in").values():
            os.utime(path, (number * 1000, number * 1000))
        described = {"name": "image", "source_date_epoch": EPOCH, "params": PARAMS}
        (folder / "job.json").write_text(json.dumps(described))
        subprocess.run(
            [sys.executable, "-m", "stages.image", folder],
            cwd=ROOT,
            env={"PATH": os.environ["PATH"], **env},
            umask=umask,
            check=True,
            stdout=subprocess.DEVNULL,
        )
        layout = folder / "out" / "layout"
        found.add(json.dumps(contents_of(layout)))
        shutil.rmtree(folder)
    assert len(found) == 1


def test_an_unchanged_package_leaves_its_pack(make_job: MakeJob, tmp_path: Path) -> None:
    before = open_layout(build(make_job, inputs(tmp_path / "before")))
    changed = {"new": b"n" * 5000, **CONTENTS, "bash": b"other" * 100}
    tree, objects = objects_of(changed)
    after = open_layout(
        build(
            make_job,
            inputs(tmp_path / "after", tree=tree, objects=objects.encode(), metadata=b"a metadata image"),
        )
    )
    touched = {f"objects-{grouping.bucket(source):02d}.pack" for source in ("bash", "new")}
    for title, layer in before.layers.items():
        if title.endswith(".pack") and title not in touched:
            assert after.layers[title] == layer


@pytest.mark.parametrize("variant", ["raw", "iso", "qcow2", "floppy"])
def test_a_variant_that_is_not_built_is_refused_by_name(
    variant: str, make_job: MakeJob, tmp_path: Path
) -> None:
    with pytest.raises(Failure, match=f"variant '{variant}' is not built") as caught:
        build(make_job, inputs(tmp_path / "in"), variants=["kernel-initrd-composefs-oci", variant])
    assert "kernel-initrd-composefs-oci" in caught.value.hint


def test_a_metadata_image_with_another_digest_is_refused(make_job: MakeJob, tmp_path: Path) -> None:
    with pytest.raises(Failure, match="metadata image: expected the fs-verity digest"):
        build(make_job, inputs(tmp_path / "in", metadata=b"swapped"))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("00 0 1 bash", "line 1: expected"),
        (f"{'00' * 32} 0 1", "line 1: expected"),
        (f"{'00' * 32} -1 1 bash", "line 1: expected"),
        (f"{'00' * 32} 0 999999 bash", "is not inside"),
    ],
)
def test_a_damaged_list_of_objects_is_refused(
    line: str, said: str, make_job: MakeJob, tmp_path: Path
) -> None:
    with pytest.raises(Failure, match=said):
        build(make_job, inputs(tmp_path / "in", objects=line.encode() + b"\n"))


def test_an_image_without_objects(make_job: MakeJob, tmp_path: Path) -> None:
    layout = open_layout(build(make_job, inputs(tmp_path / "in", objects=b"", tree=b"")))
    layout.check()
    assert list(layout.layers) == ["build-manifest.json", "vmlinuz", "initramfs.cpio.zst", "root.cfs"]


def test_the_manifest_follows_the_image_specification(make_job: MakeJob, tmp_path: Path) -> None:
    """OCI image specification 1.1: manifest.md, descriptor.md, annotations.md, for artifacts."""
    layout = open_layout(build(make_job, inputs(tmp_path / "in")))
    manifest = json.loads(layout.manifest_bytes)
    assert set(manifest) == {"schemaVersion", "mediaType", "artifactType", "config", "layers"}
    assert manifest["schemaVersion"] == 2
    media_type = re.compile(
        r"[A-Za-z0-9][A-Za-z0-9!#$&\-^_.+]{0,126}/[A-Za-z0-9][A-Za-z0-9!#$&\-^_.+]{0,126}"
    )
    for blob in (manifest["config"], *manifest["layers"]):
        assert set(blob) <= {"mediaType", "digest", "size", "annotations"}
        assert media_type.fullmatch(blob["mediaType"])
        assert re.fullmatch(r"sha256:[0-9a-f]{64}", blob["digest"])
        assert isinstance(blob["size"], int)
        assert all(isinstance(value, str) for value in blob.get("annotations", {}).values())
    assert not manifest["config"]["mediaType"].startswith("application/vnd.oci.image.config")


def of(digest: int, source: str, size: int = 100) -> Sourced:
    return Sourced(packs.Object(f"{digest:064x}", 0, size), source)


def test_buckets_never_move() -> None:
    """sha256sum of the name, its first 16 digits modulo 48: other numbers make every pack a new one."""
    names = ("bash", "glibc", "systemd", "perl", "linux-signed-amd64", "openssl")
    assert [grouping.bucket(name) for name in names] == [10, 8, 13, 18, 12, 22]


@given(
    st.lists(
        st.tuples(
            st.text("abc-", min_size=1, max_size=4), st.sampled_from([65, 5000, LARGE, LARGE + 1, LARGE * 3])
        ),
        max_size=300,
    )
)
def test_any_image_has_at_most_64_layers(listed: list[tuple[str, int]]) -> None:
    objects = [of(number, source, size) for number, (source, size) in enumerate(listed)]
    found = grouping.packs(objects)
    assert 4 + len(found) <= MOST_LAYERS
    assert sorted(each.digest for group in found.values() for each in group) == [
        each.content.digest for each in objects
    ]
    large = [each for each in objects if each.content.size > LARGE]
    assert sum(len(title) > 30 for title in found) == min(len(large), MOST_LARGE)


def test_a_large_object_has_a_pack_of_its_own() -> None:
    found = grouping.packs([of(1, "p"), of(2, "p", LARGE), of(3, "p", LARGE + 1), of(4, "-", LARGE + 1)])
    assert {title: [int(each.digest, 16) for each in group] for title, group in found.items()} == {
        f"objects-{grouping.bucket('p'):02d}.pack": [1, 2],
        f"objects-{3:064x}.pack": [3],
        f"objects-{4:064x}.pack": [4],
    }


def test_with_too_many_large_objects_the_largest_stand_alone() -> None:
    objects = [of(number, "p", LARGE + 1 + number) for number in range(MOST_LARGE + 2)]
    found = grouping.packs(objects)
    bucket = f"objects-{grouping.bucket('p'):02d}.pack"
    assert [int(each.digest, 16) for each in found[bucket]] == [0, 1]
    assert len(found) == MOST_LARGE + 1


def test_every_bucket_at_once_fits() -> None:
    sources = [f"source{number}" for number in range(BUCKETS * 20)]
    objects = [of(number, source) for number, source in enumerate((*sources, "-"))]
    objects += [of(10_000 + number, "x", LARGE + 1) for number in range(MOST_LARGE)]
    assert len(grouping.packs(objects)) == MOST_LAYERS - 4


def test_what_the_provenance_says_is_null_here() -> None:
    facts = documents.Facts("arm64", "6.12", (), ("kernel-initrd-composefs-oci",), "00" * 32, EPOCH)
    built = documents.build_manifest(facts, [])
    assert [name for name, value in built.items() if value is None] == [
        "base_image_digest", "apt_snapshot", "git_sha", "oci_digest",
    ]  # fmt: skip
    assert documents.config(facts)["cmdline"] == f"composefs={'00' * 32}"
