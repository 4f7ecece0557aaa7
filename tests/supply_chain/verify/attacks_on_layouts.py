"""Changed layouts: index, manifests, configuration, layers, referrers, and the folder itself."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

from supply_chain.image import BUILD_MANIFEST, INITRAMFS, KERNEL, METADATA
from supply_chain.oci import INDEX, MANIFEST, digest_of
from supply_chain.statement import PROVENANCE, SBOM, SIGNATURE
from tests.supply_chain.verify.attacks import Attack, Json, cuts, dump, field_changes, flips, swaps
from tests.supply_chain.verify.signed_image import (
    Image,
    Signed,
    blob_files,
    blob_path,
    index_of,
    layout_files,
)

INDEX_FILE = "index.json"
Files = Mapping[str, bytes | None]


def on_index(signed: Signed, other: Signed) -> Iterator[Attack]:
    """index.json is signed by nobody: what counts is which manifests it names, the image first."""
    content = signed.files[INDEX_FILE]
    document = json.loads(content)

    def attack(kind: str, what: str, index: bytes) -> Attack:
        same = _named(index) == _named(content)
        harmless = "names the same manifests in the same order" if same else ""
        return Attack(f"index: {kind}", what, files={INDEX_FILE: index}, harmless=harmless)

    for what, index in flips(content, step=8, seed=3):
        yield attack("bit flipped", what, index)
    for what, index in cuts(content, 40):
        yield attack("truncated", what, index)
    for kind, what, index in field_changes(document):
        yield attack(kind, what, index)
    for what, index in swaps(document, json.loads(other.files[INDEX_FILE])):
        yield attack("part of another image's", what, index)
    entries: list[Json] = document["manifests"]
    for at in range(1, len(entries)):
        yield attack(
            "another manifest first", f"{at}", index_of([entries[at], *entries[:at], *entries[at + 1 :]])
        )
        yield attack("a manifest less", f"{at}", index_of([*entries[:at], *entries[at + 1 :]]))
        yield attack(
            "the image's descriptor, and another's digest",
            f"{at}",
            index_of(
                [{**entries[0], "digest": entries[at]["digest"], "size": entries[at]["size"]}, *entries[1:]]
            ),
        )
    for at, entry in enumerate(entries):
        for size in (0, 1, entry["size"] - 1, entry["size"] + 1, 1 << 40, (1 << 63) - 1, 1 << 63, -1):
            yield attack(
                "size lies",
                f"{at}: {size}",
                index_of([*entries[:at], {**entry, "size": size}, *entries[at + 1 :]]),
            )
        for media_type in (
            INDEX,
            "application/json",
            "application/vnd.docker.distribution.manifest.v2+json",
        ):
            yield attack(
                "media type lies",
                f"{at}: {media_type}",
                index_of([*entries[:at], {**entry, "mediaType": media_type}, *entries[at + 1 :]]),
            )
    yield attack("the image alone", "", index_of(entries[:1]))
    yield attack("no image", "", index_of(entries[1:]))
    yield attack("empty", "", index_of([]))
    yield Attack(
        "index: every referrer twice",
        "",
        files={INDEX_FILE: index_of([*entries, *entries[1:]])},
        harmless="the same manifests",
    )
    yield Attack(
        "index: referrers in another order",
        "",
        files={INDEX_FILE: index_of([entries[0], *reversed(entries[1:])])},
        harmless="the same manifests",
    )


def on_manifest(signed: Signed, other: Signed) -> Iterator[Attack]:
    """The manifest changed: under its old digest, and under its new one with everything hung on it."""
    image = signed.image
    document = json.loads(image.manifest)
    changes = [
        *(("bit flipped", what, each) for what, each in flips(image.manifest, step=9, seed=4)),
        *(("truncated", what, each) for what, each in cuts(image.manifest, 20)),
        *field_changes(document),
        *(
            ("part of another image's", what, each)
            for what, each in swaps(document, json.loads(other.image.manifest))
        ),
        *(
            (
                "layers in another order",
                f"{at}",
                dump({**document, "layers": [*document["layers"][at:], *document["layers"][:at]]}),
            )
            for at in range(1, len(document["layers"]))
        ),
        *(
            (
                "a layer less",
                f"{at}",
                dump({**document, "layers": [*document["layers"][:at], *document["layers"][at + 1 :]]}),
            )
            for at in range(len(document["layers"]))
        ),
        ("same JSON in other bytes", "", json.dumps(document, indent=1).encode()),
    ]
    for kind, what, manifest in changes:
        yield Attack(f"manifest: {kind}, under its digest", what, files={blob_path(image.digest): manifest})
        changed = Image(manifest, {**image.blobs, **other.image.blobs})
        yield Attack(
            f"manifest: {kind}, all hung on it",
            what,
            files=_over(signed, layout_files(changed, list(signed.bundles.items()))),
        )


def on_content(signed: Signed, other: Signed) -> Iterator[Attack]:
    """Configuration, build manifest and layers."""
    image = signed.image
    described = {
        "configuration": json.loads(image.manifest)["config"],
        **{
            title: image.of_title(title)
            for title in (BUILD_MANIFEST, KERNEL, INITRAMFS, METADATA, "objects-00.pack")
        },
    }
    theirs = {
        "configuration": json.loads(other.image.manifest)["config"],
        **{title: other.image.of_title(title) for title in described if title != "configuration"},
    }
    for title, descriptor in described.items():
        digest = descriptor["digest"]
        content = image.blobs[digest]
        path = blob_path(digest)
        for what, changed in flips(content, step=max(3, len(content) // 60), seed=5):
            yield Attack(
                f"{_kind(title)}: bit flipped, under its digest", f"{title} {what}", files={path: changed}
            )
        for what, changed in cuts(content, 8):
            yield Attack(f"{_kind(title)}: truncated", f"{title} {what}", files={path: changed})
        yield Attack(f"{_kind(title)}: longer", title, files={path: content + b"\0"})
        yield Attack(f"{_kind(title)}: gone", title, files={path: None})
        swap = other.image.blobs[theirs[title]["digest"]]
        yield Attack(f"{_kind(title)}: another image's, under its digest", title, files={path: swap})
        manifest = image.manifest.replace(digest.encode(), theirs[title]["digest"].encode())
        yield Attack(
            f"{_kind(title)}: another image's, by its digest",
            title,
            files=_over(
                signed,
                layout_files(
                    Image(manifest, {**image.blobs, **other.image.blobs}), list(signed.bundles.items())
                ),
            ),
        )
    for title in ("configuration", BUILD_MANIFEST):
        descriptor = described[title]
        for kind, what, changed in field_changes(json.loads(image.blobs[descriptor["digest"]])):
            manifest = image.manifest.replace(
                descriptor["digest"].encode(), digest_of(changed).encode()
            ).replace(f'"size":{descriptor["size"]}'.encode(), f'"size":{len(changed)}'.encode())
            blobs = {**image.blobs, digest_of(changed): changed}
            yield Attack(
                f"{_kind(title)}: {kind}, all hung on it",
                what,
                files=_over(signed, layout_files(Image(manifest, blobs), list(signed.bundles.items()))),
            )


def on_referrers(signed: Signed, other: Signed) -> Iterator[Attack]:
    """The manifests that bundles come in are signed by nobody: what counts is the bundle and the subject."""
    entries: list[Json] = json.loads(signed.files[INDEX_FILE])["manifests"]
    for at, kind in enumerate((SIGNATURE, SBOM, PROVENANCE), 1):
        content = signed.files[blob_path(entries[at]["digest"])]
        document = json.loads(content)
        bundle = blob_path(document["layers"][0]["digest"])
        if kind != SIGNATURE:
            changes = [("bit flipped", what, each) for what, each in flips(content, step=40, seed=at)]
        else:
            theirs = json.loads(other.files[INDEX_FILE])["manifests"][at]
            changes = [
                *(("bit flipped", what, each) for what, each in flips(content, step=12, seed=6)),
                *(("truncated", what, each) for what, each in cuts(content, 20)),
                *field_changes(document),
                *(
                    ("part of another image's", what, each)
                    for what, each in swaps(document, json.loads(other.files[blob_path(theirs["digest"])]))
                ),
            ]
        for how, what, changed in changes:
            entry = {"mediaType": MANIFEST, "digest": digest_of(changed), "size": len(changed)}
            index = index_of([*entries[:at], entry, *entries[at + 1 :]])
            same = _hung(changed) == _hung(content)
            yield Attack(
                f"referrer: {how}",
                f"{at} {what}",
                files={**blob_files([changed]), INDEX_FILE: index},
                harmless="the same bundle on the same image" if same else "",
            )
            yield Attack(
                f"referrer: {how}, under its digest",
                f"{at} {what}",
                files={blob_path(entries[at]["digest"]): changed},
            )
        yield Attack("referrer: gone", f"{at}", files={blob_path(entries[at]["digest"]): None})
        yield Attack("referrer: bundle gone", f"{at}", files={bundle: None})
        for what, changed in flips(signed.files[bundle], step=211, seed=7):
            yield Attack(
                "referrer: bundle's bit flipped, under its digest", f"{at} {what}", files={bundle: changed}
            )
    yield from _hung_elsewhere(signed, other)


def on_folder(signed: Signed) -> Iterator[Attack]:
    """What makes a folder a layout."""
    for what, marker in {
        "gone": None,
        "another version": b'{"imageLayoutVersion":"2.0.0"}',
        "no version": b"{}",
        "no JSON": b"1.0.0",
        "empty": b"",
        "the version twice": b'{"imageLayoutVersion":"2.0.0","imageLayoutVersion":"1.0.0"}x',
    }.items():
        yield Attack("layout: its marker", what, files={"oci-layout": marker})
    yield Attack("layout: no index", "", files={INDEX_FILE: None})
    digests = [name for name in signed.files if name.startswith("blobs/")]
    needed = [name for name in digests if signed.files[name] != b"{}"]
    for one, two in zip(needed, needed[1:] + needed[:1], strict=True):
        yield Attack(
            "layout: two blobs changed places", one, files={one: signed.files[two], two: signed.files[one]}
        )


def _hung_elsewhere(signed: Signed, other: Signed) -> Iterator[Attack]:
    kinds = (SIGNATURE, SBOM, PROVENANCE)
    name = "referrers: another image's bundles"
    for chosen in range(1, 8):
        mixed = [
            (kind, (other if chosen >> at & 1 else signed).bundles[kind]) for at, kind in enumerate(kinds)
        ]
        yield Attack(name, f"{chosen:03b}", files=_over(signed, layout_files(signed.image, mixed)))
        beside = [*mixed, *((kind, signed.bundles[kind]) for kind in kinds[1:])]
        if chosen & 1:
            yield Attack(
                name,
                f"{chosen:03b} beside its own, without its signature",
                files=_over(signed, layout_files(signed.image, beside)),
            )
    name = "referrers: one kind for another"
    for first in kinds:
        for second in kinds:
            for third in kinds:
                if {first, second, third} != set(kinds):
                    picked = [signed.bundles[kind] for kind in (first, second, third)]
                    hung = list(zip(kinds, picked, strict=True))
                    yield Attack(
                        name,
                        f"{kinds.index(first)}{kinds.index(second)}{kinds.index(third)}",
                        files=_over(signed, layout_files(signed.image, hung)),
                    )
    honest = {**signed.bundles}
    for kind in kinds:
        left = [(other_kind, each) for other_kind, each in honest.items() if other_kind != kind]
        yield Attack(
            "referrers: one kind is missing", kind, files=_over(signed, layout_files(signed.image, left))
        )
        yield Attack(
            "referrers: one kind alone",
            kind,
            files=_over(signed, layout_files(signed.image, [(kind, honest[kind])])),
        )


def _over(signed: Signed, files: Mapping[str, bytes]) -> Files:
    """What to write over the signed layout to get these files; its own blobs may stay."""
    own = signed.files
    return {name: content for name, content in files.items() if own.get(name) != content}


def _named(index: bytes) -> object:
    """Which manifests an index names, as far as anybody may believe it."""
    try:
        manifests = json.loads(index)["manifests"]
        named = dict.fromkeys((each["digest"], each["size"]) for each in manifests)
        return list(named), manifests[0]["artifactType"]
    except (ValueError, KeyError, TypeError, IndexError):
        return None


def _hung(manifest: bytes) -> object:
    """What a referrer hangs on what."""
    try:
        loaded = json.loads(manifest)
        return [each["digest"] for each in loaded["layers"]], loaded["subject"]["digest"]
    except (ValueError, KeyError, TypeError, IndexError):
        return None


def _kind(title: str) -> str:
    return title if title in ("configuration", BUILD_MANIFEST) else "layer"
