"""A small image in the real formats and what is attested of it, in memory: any part of it can be changed and
the rest made to fit, as an attacker would.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipelines.definition import canonical_json
from pipelines.lock import Lock
from stages.image import documents
from stages.image.layout import Descriptor as Written
from stages.shared import fsverity, purl
from supply_chain import provenance
from supply_chain.beside import build_record_path, sbom_path
from supply_chain.delta import OBJECTS
from supply_chain.image import ARTIFACT, BUILD_MANIFEST, CONFIG, FSVERITY, INITRAMFS, KERNEL, METADATA, TITLE
from supply_chain.oci import EMPTY_CONTENT, INDEX, MANIFEST, Descriptor, describe, digest_of
from supply_chain.referrer import write_referrer
from supply_chain.statement import PROVENANCE, SBOM, SIGNATURE, statement_bytes
from tests.supply_chain.images import noise
from tests.supply_chain.verify.forge import HONEST, IDENTITY, Forge, Names

Json = dict[str, Any]
KINDS = (SIGNATURE, SBOM, PROVENANCE)
COMMIT = "1f" * 20
EPOCH = 1_767_225_600
LOCKED = {
    "root": (("bash", "5.2.37-2"), ("libc6", "2.41-12"), ("systemd", "257.9-1")),
    "kernel": (("linux-image", "6.12"),),
}
LOCK_FILE = Lock.model_validate(
    {
        "schema": 1,
        "suite": "trixie",
        "arch": "amd64",
        "requested": {},
        "packages": [
            {
                "name": name,
                "version": version,
                "arch": "amd64",
                "sha256": digest_of(name.encode())[7:],
                "size": 1,
                "pool_path": f"pool/{name}",
                "sets": [of],
            }
            for of, files in LOCKED.items()
            for name, version in files
        ],
    }
)
LOCK = LOCK_FILE.to_bytes()


def packages_of(name: str) -> dict[str, str]:
    """Package URL → sha256 of a set of the lock."""
    return {
        purl.deb(file.name, file.version, file.arch, "debian-13"): file.sha256
        for file in LOCK_FILE.of_set(name)
    }


PACKAGES, KERNEL_PACKAGE = packages_of("root"), packages_of("kernel")


@dataclass(frozen=True)
class Image:
    """An image's manifest and its blobs by digest."""

    manifest: bytes
    blobs: Mapping[str, bytes]

    @property
    def described(self) -> Descriptor:
        """The index's first entry."""
        return describe(self.manifest, MANIFEST, artifact_type=ARTIFACT)

    @property
    def digest(self) -> str:
        """Its identity."""
        return digest_of(self.manifest)

    def of_title(self, title: str) -> Json:
        """The descriptor of a layer."""
        layers: list[Json] = json.loads(self.manifest)["layers"]
        return next(layer for layer in layers if layer["annotations"][TITLE] == title)

    def changed(self, **fields: Any) -> Image:
        """With other fields in the manifest."""
        return replace(self, manifest=canonical_json({**json.loads(self.manifest), **fields}))


def make_image(name: str = "debian", objects: int = 20_000) -> Image:
    """An image whose content is noise, another for another name, with so many bytes of objects."""
    contents = {
        KERNEL: ("application/vnd.powernode.disk_image.kernel.v1", noise(f"{name} kernel", 5_000)),
        INITRAMFS: ("application/vnd.powernode.disk_image.initramfs.v1+zstd", noise(f"{name} init", 3_000)),
        METADATA: ("application/vnd.erofs", noise(f"{name} metadata", 9_000)),
        "objects-00.pack": (OBJECTS, noise(f"{name} objects", objects)),
    }
    composefs = fsverity.merkle(contents[METADATA][1]).digest
    layers = [
        Written(
            media_type,
            digest_of(content)[7:],
            len(content),
            {TITLE: title} | ({FSVERITY: f"sha256:{composefs}"} if title == METADATA else {}),
        )
        for title, (media_type, content) in contents.items()
    ]
    facts = documents.Facts(
        "amd64", "6.12.1-test", ("quiet",), ("kernel-initrd-composefs-oci",), composefs, EPOCH
    )
    config = canonical_json(documents.config(facts))
    built = canonical_json(documents.build_manifest(facts, layers))
    first = Written(f"{ARTIFACT}+manifest", digest_of(built)[7:], len(built), {TITLE: BUILD_MANIFEST})
    manifest: Json = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "artifactType": ARTIFACT,
        "config": describe(config, CONFIG).to_json(),
        "layers": [layer.to_json() for layer in (first, *layers)],
    }
    blobs = [config, built, *(content for _, content in contents.values())]
    return Image(canonical_json(manifest), {digest_of(blob): blob for blob in blobs})


@dataclass(frozen=True)
class Signed:
    """An image and its three bundles by predicate type."""

    image: Image
    bundles: Mapping[str, bytes]

    @property
    def files(self) -> dict[str, bytes]:
        """The layout, path → content."""
        return layout_files(self.image, list(self.bundles.items()))


def sign(forge: Forge, image: Image, names: Names = HONEST) -> Signed:
    """All that `disk-image sign` says of an image."""
    statements = statements_of(image, names.identity).items()
    return Signed(image, {kind: bundle(forge, each, names) for kind, each in statements})


def bundle(forge: Forge, statement: bytes, names: Names = HONEST) -> bytes:
    """A signed statement."""
    return json.dumps(forge.bundle(statement, names)).encode()


def sbom_of(image: Image) -> Json:
    """What stages/sbom says of such an image, without what nobody compares."""
    parts = {title: image.of_title(title)["digest"][7:] for title in (KERNEL, INITRAMFS, METADATA)}
    packages = [
        {
            "SPDXID": f"SPDXRef-{index}",
            "name": url.split("@")[0].rpartition("/")[2],
            "versionInfo": url.split("@")[1].split("?")[0],
            "checksums": [{"algorithm": "SHA256", "checksumValue": sha256}],
            "externalRefs": [
                {
                    "referenceCategory": "PACKAGE-MANAGER",
                    "referenceType": "purl",
                    "referenceLocator": url,
                }
            ],
        }
        for index, (url, sha256) in enumerate((*PACKAGES.items(), *KERNEL_PACKAGE.items()))
    ]
    elements = [
        {
            "SPDXID": f"SPDXRef-{id_}",
            "name": name,
            "checksums": [{"algorithm": "SHA256", "checksumValue": sha256}],
        }
        for id_, name, sha256 in (
            ("image", "debian", image.digest[7:]),
            *((f"part-{title}", title, sha256) for title, sha256 in parts.items()),
        )
    ]
    for element in elements[1:]:
        element["packageFileName"] = element["name"]
    *installed, kernel = packages
    contained = [each["SPDXID"] for each in (*elements[1:], *installed)]
    return {
        "spdxVersion": "SPDX-2.3",
        "SPDXID": "SPDXRef-DOCUMENT",
        "name": "debian",
        "packages": [*elements, *packages],
        "relationships": [
            _related("SPDXRef-DOCUMENT", "DESCRIBES", "SPDXRef-image"),
            *(_related("SPDXRef-image", "CONTAINS", str(each)) for each in contained),
            _related(f"SPDXRef-part-{KERNEL}", "GENERATED_FROM", str(kernel["SPDXID"])),
        ],
    }


def record_of(image: Image) -> provenance.BuildRecord:
    """What `build` says of how such an image was built."""
    return provenance.BuildRecord.model_validate(
        {
            "image": image.digest,
            "buildDefinition": {
                "buildType": provenance.BUILD_TYPE,
                "externalParameters": {
                    "recipe": {
                        "arch": "amd64",
                        "source_date_epoch": EPOCH,
                        "cmdline": ["quiet"],
                        "variants": ["kernel-initrd-composefs-oci"],
                        "packages": ["bash"],
                    },
                    "gitSha": COMMIT,
                },
                "internalParameters": {"stageEnvironment": 1},
                "resolvedDependencies": [
                    *(
                        {"uri": url, "digest": {"sha256": sha256}, "annotations": {"sets": [of]}}
                        for of, used in (("root", PACKAGES), ("kernel", KERNEL_PACKAGE))
                        for url, sha256 in used.items()
                    ),
                    {"name": provenance.RECIPE_LOCK, "digest": {"sha256": digest_of(LOCK)[7:]}},
                    {"name": provenance.SOURCE, "digest": {"gitCommit": COMMIT}},
                ],
            },
            "runDetails": {
                "builder": {"version": {"disk-image-ci": "0.1.0", "executor": "local"}},
                "metadata": {
                    "invocationId": "urn:uuid:5b2ec5ef-6d3a-4b0c-8d3e-0d6f0c7c0b5e",
                    "startedOn": "2026-01-02T03:04:05Z",
                    "finishedOn": "2026-01-02T03:05:06Z",
                },
            },
        }
    )


def provenance_of(image: Image, builder: str = IDENTITY) -> Json:
    """What `sign` makes of that."""
    return provenance.complete(record_of(image), builder).to_json()


def statements_of(image: Image, builder: str = IDENTITY) -> dict[str, bytes]:
    """Predicate type → statement: all that is attested of an image."""
    return {
        SIGNATURE: statement_bytes(image.digest, SIGNATURE, {}),
        SBOM: statement_bytes(image.digest, SBOM, sbom_of(image)),
        PROVENANCE: statement_bytes(image.digest, PROVENANCE, provenance_of(image, builder)),
    }


def layout_files(image: Image, bundles: Sequence[tuple[str, bytes]]) -> dict[str, bytes]:
    """Path → content of a layout with the image and what hangs on it: (predicate type, bundle) each."""
    created = datetime(2026, 1, 2, 3, 6, tzinfo=UTC)
    referrers = [
        write_referrer(bundle, image.described, predicate_type=kind, created=created)
        for kind, bundle in bundles
    ]
    entries = [image.described, *(referrer.descriptor for referrer in referrers)]
    return {
        "oci-layout": canonical_json({"imageLayoutVersion": "1.0.0"}),
        "index.json": index_of([entry.to_json() for entry in entries]),
        **{blob_path(digest): content for digest, content in image.blobs.items()},
        **blob_files([image.manifest, EMPTY_CONTENT, *(referrer.content for referrer in referrers)]),
        **blob_files([referrer.bundle for referrer in referrers]),
    }


def index_of(entries: Sequence[Json]) -> bytes:
    """An index.json."""
    return canonical_json({"schemaVersion": 2, "mediaType": INDEX, "manifests": list(entries)})


def blob_files(contents: Sequence[bytes]) -> dict[str, bytes]:
    """Path → content of blobs under their digests."""
    return {blob_path(digest_of(content)): content for content in contents}


def blob_path(digest: str) -> str:
    """Where a blob is in a layout."""
    return f"blobs/sha256/{digest.removeprefix('sha256:')}"


def write(folder: Path, files: Mapping[str, bytes]) -> Path:
    """A layout on disk."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def write_built(folder: Path, image: Image) -> Path:
    """A layout on disk and what `build` writes beside it."""
    write(folder, layout_files(image, ()))
    sbom_path(folder).write_bytes(canonical_json(sbom_of(image)))
    build_record_path(folder).write_bytes(record_of(image).to_bytes())
    return folder


def _related(element: str, how: str, other: str) -> Json:
    return {"spdxElementId": element, "relationshipType": how, "relatedSpdxElement": other}
