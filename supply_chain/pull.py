"""Pull an image, and what hangs on it, from a registry into an OCI layout on disk.

Every blob is checked against its digest before it gets its name, the index comes last, and a pull that was
cut goes on where it stopped: whole blobs stay, a partial one is continued.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import anyio

from pipelines.definition import canonical_json
from supply_chain.errors import BrokenAnswer, LayoutError
from supply_chain.oci import MANIFEST, Descriptor, Index, parse_index, parse_manifest
from supply_chain.reference import Reference, parse_reference
from supply_chain.registry import Credentials, Policy, Referrer, Repository, open_repository
from supply_chain.registry.parallel import side_by_side

Progress = Callable[[int, int], None]

# A signature, SBOM or provenance; cosign reads them whole into memory, and so does whoever verifies.
REFERRER_LIMIT = 64 * 1024 * 1024

_PARTIAL = ".partial"


@dataclass(frozen=True, slots=True)
class PullResult:
    """What a pull did; sizes in bytes, `bytes_received` with everything that came twice."""

    reference: str
    digest: str
    blobs_fetched: int
    blobs_present: int
    bytes_received: int
    referrers: tuple[str, ...]

    def to_json(self) -> dict[str, object]:
        """For `--json`."""
        return {**asdict(self), "referrers": list(self.referrers)}


async def pull(
    ref: str,
    folder: Path,
    *,
    plain_http: bool = False,
    ca_file: Path | None = None,
    credentials: Credentials | None = None,
    policy: Policy | None = None,
    limit: int | None = None,
    progress: Progress | None = None,
) -> PullResult:
    """The image at `ref` into the layout `folder`; `limit` is the most bytes that its blobs may have."""
    reference = parse_reference(ref)
    async with open_repository(
        reference.registry, reference.repository,
        plain_http=plain_http, ca_file=ca_file, credentials=credentials, policy=policy,
    ) as repository:  # fmt: skip
        return await pull_layout(reference, repository, folder, limit=limit, progress=progress)


async def pull_layout(
    reference: Reference,
    repository: Repository,
    folder: Path,
    *,
    limit: int | None = None,
    progress: Progress | None = None,
) -> PullResult:
    """Fetch manifest, blobs and referrers. A tag is resolved once, and its digest is what is fetched.

    Raises RegistryErrors, and LayoutError when `folder` holds something else.
    """
    document = await repository.manifests.get(reference.target)
    image = document.descriptor
    if image.media_type != MANIFEST:
        raise BrokenAnswer(
            f"{reference}: expected one image ({MANIFEST}), found {image.media_type}",
            "name the image itself by its digest",
        )
    manifest = parse_manifest(document.content, f"manifest {image.digest}")
    referrers = await repository.referrers.list(image.digest)
    _check_sizes(reference, manifest.blobs, referrers, limit)
    blobs = {blob.digest: blob for blob in manifest.blobs}
    for referrer in referrers:
        blobs.update((blob.digest, blob) for blob in referrer.manifest.blobs)
    pulling = _Pulling(repository, folder, progress, sum(blob.size for blob in blobs.values()))
    first = image.model_copy(update={"artifact_type": manifest.artifact_type})
    index = Index(manifests=(first, *(referrer.descriptor for referrer in referrers)))
    documents = {image.digest: document.content} | {one.descriptor.digest: one.content for one in referrers}
    with pulling:
        await anyio.to_thread.run_sync(pulling.prepare, image.digest)
        await side_by_side(repository.policy.parallel, list(blobs.values()), pulling.blob)
        await anyio.to_thread.run_sync(pulling.finish, documents, index)
    return PullResult(
        reference=str(reference),
        digest=image.digest,
        blobs_fetched=pulling.fetched,
        blobs_present=pulling.present,
        bytes_received=pulling.received,
        referrers=tuple(referrer.descriptor.digest for referrer in referrers),
    )


class _Pulling:
    """A layout while it fills."""

    def __init__(self, repository: Repository, folder: Path, progress: Progress | None, total: int) -> None:
        self._repository = repository
        self._folder = folder
        self._blobs = folder / "blobs" / "sha256"
        self._partial = folder / _PARTIAL
        self._progress = progress
        self._total = total
        self._done = 0
        self.fetched = 0
        self.present = 0
        self.received = 0
        self._lock = -1

    def __enter__(self) -> _Pulling:
        return self

    def __exit__(self, *error: object) -> None:
        if self._lock >= 0:
            os.close(self._lock)

    def prepare(self, digest: str) -> None:
        """Make the folders. A folder with anything but this image, or a part of it, is refused."""
        hint = "name a new folder, or one that an earlier pull of this image left"
        try:
            known = {"oci-layout", "index.json", "blobs", _PARTIAL}
            if self._folder.exists() and (other := {path.name for path in self._folder.iterdir()} - known):
                raise LayoutError(f"{self._folder}: no OCI layout: it holds {sorted(other)[0]}", hint)
            with suppress(FileNotFoundError):
                index = parse_index((self._folder / "index.json").read_bytes(), f"{self._folder}/index.json")
                found = index.manifests[0].digest if index.manifests else "nothing"
                if found != digest:
                    raise LayoutError(f"{self._folder}: expected the image {digest}, found {found}", hint)
            self._blobs.mkdir(parents=True, exist_ok=True)
            self._partial.mkdir(exist_ok=True)
            self._lock = os.open(self._partial, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LayoutError(f"{self._folder}: another pull is filling it", "wait for it to end") from None
        except OSError as error:
            raise LayoutError(f"{self._folder}: {error.strerror}", hint) from error

    async def blob(self, blob: Descriptor) -> None:
        """Have one blob under its name."""
        path = self._blobs / blob.hex
        if await anyio.to_thread.run_sync(_holds, path, blob):
            self.present += 1
        else:
            partial = self._partial / blob.hex
            try:
                with os.fdopen(
                    os.open(partial, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644), "r+b"
                ) as file:
                    await self._repository.download(blob, file, on_received=self._count)
                partial.replace(path)
            except OSError as error:
                raise LayoutError(
                    f"pull of blob {blob.digest}: can't be written: {error.strerror}",
                    "make room, or choose another folder; then the same command goes on where it stopped",
                ) from error
            self.fetched += 1
        self._done += blob.size
        if self._progress is not None:
            self._progress(self._done, self._total)

    def finish(self, documents: dict[str, bytes], index: Index) -> None:
        """Write the manifests, then the two files that make the folder a layout."""
        for digest, content in documents.items():
            self._write(self._blobs / digest.removeprefix("sha256:"), content)
        self._write(self._folder / "oci-layout", canonical_json({"imageLayoutVersion": "1.0.0"}))
        self._write(self._folder / "index.json", index.to_bytes())
        shutil.rmtree(self._partial)

    def _write(self, path: Path, content: bytes) -> None:
        new = self._partial / "document"
        new.write_bytes(content)
        new.replace(path)

    def _count(self, count: int) -> None:
        self.received += count


def _holds(path: Path, blob: Descriptor) -> bool:
    try:
        with path.open("rb") as file:
            return os.fstat(file.fileno()).st_size == blob.size and (
                hashlib.file_digest(file, "sha256").hexdigest() == blob.hex
            )
    except FileNotFoundError:
        return False


def _check_sizes(
    reference: Reference, blobs: Sequence[Descriptor], referrers: Sequence[Referrer], limit: int | None
) -> None:
    size = sum(blob.size for blob in blobs)
    if limit is not None and size > limit:
        raise BrokenAnswer(
            f"{reference}: {size} bytes, at most {limit} are taken", "publish a smaller image"
        )
    for referrer in referrers:
        for blob in referrer.manifest.blobs:
            if blob.size > REFERRER_LIMIT:
                raise BrokenAnswer(
                    f"{reference}: referrer {referrer.descriptor.digest}: a blob of {blob.size} bytes, "
                    f"at most {REFERRER_LIMIT} are taken",
                    "remove that referrer from the registry",
                )
