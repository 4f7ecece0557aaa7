"""Push an image's layout, and what hangs on it, to a registry: only what is missing travels.

Order: every blob is asked for (HEAD), missing ones are mounted or sent side by side, the manifest comes
last, so that no reader ever finds an image without its parts. Referrers follow one after the other. Running
it again after any failure sends what is still missing.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import anyio

from supply_chain.errors import LayoutError, RegistryError, WrongContent
from supply_chain.layout import Layout, open_layout
from supply_chain.oci import DOCUMENT_LIMIT, Descriptor, Manifest, parse_manifest
from supply_chain.reference import Reference, parse_reference
from supply_chain.registry import Credentials, How, Policy, Repository, open_repository, read_file
from supply_chain.registry.parallel import side_by_side

# Done and total in bytes.
Progress = Callable[[int, int], None]

# What a registry says of a manifest whose blobs it does not have (any more).
_BLOBS_GONE = frozenset({"MANIFEST_BLOB_UNKNOWN", "BLOB_UNKNOWN", "MANIFEST_UNVERIFIED"})


@dataclass(frozen=True, slots=True)
class PushPlan:
    """What a push would do now. Sizes in bytes; a blob that could be mounted counts as mounted."""

    reference: str
    digest: str
    total_bytes: int
    send_bytes: int
    mount_bytes: int
    missing: Mapping[str, int]
    send_manifest: bool
    referrers: int

    def to_json(self) -> dict[str, object]:
        """For `--json`."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class PushResult:
    """What a push did. `blob_bytes_sent` counts every byte of blobs handed to connections, resent ones
    too.
    """

    reference: str
    digest: str
    blobs_present: int
    blobs_mounted: int
    blobs_sent: int
    blob_bytes_sent: int
    document_bytes_sent: int
    referrers: tuple[str, ...]

    def to_json(self) -> dict[str, object]:
        """For `--json`."""
        return {**asdict(self), "referrers": list(self.referrers)}


@dataclass(frozen=True, slots=True)
class _Referrer:
    descriptor: Descriptor
    content: bytes
    manifest: Manifest


async def push(
    folder: Path,
    ref: str,
    *,
    dry_run: bool = False,
    plain_http: bool = False,
    ca_file: Path | None = None,
    mount_from: Sequence[str] = (),
    credentials: Credentials | None = None,
    policy: Policy | None = None,
    progress: Progress | None = None,
) -> PushPlan | PushResult:
    """`disk-image push`: the layout in `folder` to the reference `ref`, or only what that would send.

    `mount_from` are paths of other repositories in the same registry. Raises InvalidReference, LayoutError,
    CredentialError, RegistryError, and UsageError for `plain_http` with another machine's registry.
    """
    reference = parse_reference(ref)
    layout = await anyio.to_thread.run_sync(open_layout, folder)
    how = partial(
        open_repository,
        reference.registry,
        plain_http=plain_http,
        ca_file=ca_file,
        credentials=credentials,
        policy=policy,
    )
    async with AsyncExitStack() as stack:
        paths = (reference.repository, *mount_from)
        to, *sources = [await stack.enter_async_context(how(path)) for path in paths]
        if dry_run:
            return await plan_push(layout, reference, to, sources=sources)
        return await push_layout(layout, reference, to, mount_from=mount_from, progress=progress)


async def plan_push(
    layout: Layout, reference: Reference, repository: Repository, *, sources: Sequence[Repository] = ()
) -> PushPlan:
    """Ask what is there and send nothing. `sources` are repositories that blobs could be mounted from."""
    digest = _check_digest(layout, reference)
    blobs = _all_blobs(layout, referrers := _referrers(layout))
    missing: dict[str, int] = {}
    mountable: dict[str, int] = {}

    async def ask(blob: Descriptor) -> None:
        if await repository.has_blob(blob):
            return
        for source in sources:
            if await source.has_blob(blob):
                mountable[blob.digest] = blob.size
                return
        missing[blob.digest] = blob.size

    await side_by_side(repository.policy.parallel, blobs, ask)
    there = await repository.manifests.resolve(reference.target)
    return PushPlan(
        reference=str(reference),
        digest=digest,
        total_bytes=sum(blob.size for blob in blobs),
        send_bytes=sum(missing.values()),
        mount_bytes=sum(mountable.values()),
        missing=dict(sorted(missing.items())),
        send_manifest=there != digest,
        referrers=len(referrers),
    )


async def push_layout(
    layout: Layout,
    reference: Reference,
    repository: Repository,
    *,
    mount_from: Sequence[str] = (),
    progress: Progress | None = None,
) -> PushResult:
    """Push the layout's image to `reference`, which `repository` was opened for, and attach its referrers.

    Raises LayoutError for a layout that is not what it says, and RegistryErrors.
    """
    digest = _check_digest(layout, reference)
    referrers = _referrers(layout)
    blobs = _all_blobs(layout, referrers)
    pushing = _Pushing(layout, repository, mount_from, progress, sum(blob.size for blob in blobs))
    await pushing.blobs(layout.manifest.blobs)
    if await repository.manifests.resolve(reference.target) != digest:
        content, media_type = layout.manifest_bytes, layout.manifest.media_type
        put = partial(repository.manifests.put, content, media_type, reference.tag)
        await pushing.document(content, layout.manifest.blobs, put)
        if (found := await repository.manifests.resolve(reference.target)) != digest:
            raise WrongContent(
                f"{reference}: the manifest {digest} was taken, but the reference has {found or 'nothing'}",
                "another push may have moved the tag meanwhile: push again, or push to a tag of its own",
            )
    for referrer in referrers:
        await pushing.blobs(referrer.manifest.blobs)
        attach = partial(repository.referrers.attach, referrer.content)
        await pushing.document(referrer.content, referrer.manifest.blobs, attach)
    return PushResult(
        reference=str(reference),
        digest=digest,
        blobs_present=pushing.count(How.PRESENT),
        blobs_mounted=pushing.count(How.MOUNTED),
        blobs_sent=pushing.count(How.SENT),
        blob_bytes_sent=pushing.sent,
        document_bytes_sent=pushing.document_bytes,
        referrers=tuple(referrer.descriptor.digest for referrer in referrers),
    )


class _Pushing:
    """The counts of one push."""

    def __init__(
        self,
        layout: Layout,
        repository: Repository,
        mount_from: Sequence[str],
        progress: Progress | None,
        total: int,
    ) -> None:
        self._layout = layout
        self._repository = repository
        self._mount_from = mount_from
        self._progress = progress
        self._total = total
        self._done = 0
        self._how: dict[str, How] = {}
        self.sent = 0
        self.document_bytes = 0

    def count(self, how: How) -> int:
        """How many blobs came to be there in this way."""
        return sum(one is how for one in self._how.values())

    async def blobs(self, blobs: Sequence[Descriptor]) -> None:
        """Have all of them there, largest first, so that the last one under way is a small one."""
        ordered = sorted(blobs, key=lambda blob: (-blob.size, blob.digest))
        await side_by_side(self._repository.policy.parallel, ordered, self._blob)

    async def document(
        self, content: bytes, blobs: Sequence[Descriptor], write: Callable[[], Awaitable[object]]
    ) -> None:
        """Write a manifest whose blobs are there. Should the registry have lost one that it took, or said
        that it had, it is asked and sent once more.
        """
        try:
            await write()
        except RegistryError as error:
            if _BLOBS_GONE.isdisjoint(error.codes):
                raise
            await self.blobs(blobs)
            await write()
        self.document_bytes += len(content)

    async def _blob(self, blob: Descriptor) -> None:
        how = await self._repository.upload(
            blob, read_file(self._layout.path(blob)), mount_from=self._mount_from, on_sent=self._count
        )
        before = self._how.get(blob.digest)
        self._how[blob.digest] = how if before in (None, How.PRESENT) else before
        if before is None:
            self._done += blob.size
            if self._progress is not None:
                self._progress(self._done, self._total)

    def _count(self, count: int) -> None:
        self.sent += count


def _check_digest(layout: Layout, reference: Reference) -> str:
    digest = layout.image.digest
    if reference.digest not in (None, digest):
        raise LayoutError(
            f"{layout.folder}: holds the image {digest}, the reference names {reference.digest}",
            "push to a tag, or to the image's own digest",
        )
    return digest


def _referrers(layout: Layout) -> list[_Referrer]:
    """The index's manifests after the first: each must refer to the image."""
    digest = layout.image.digest
    found = []
    for entry in layout.index.manifests[1:]:
        content = layout.read(entry, limit=DOCUMENT_LIMIT)
        manifest = parse_manifest(content, f"{layout.folder}: manifest {entry.digest}")
        if manifest.subject is None or manifest.subject.digest != digest:
            raise LayoutError(
                f"{layout.folder}: manifest {entry.digest} does not refer to the image {digest}",
                "a layout to push holds one image and what hangs on it: build it anew",
            )
        found.append(_Referrer(entry, content, manifest))
    return found


def _all_blobs(layout: Layout, referrers: Sequence[_Referrer]) -> list[Descriptor]:
    blobs = [*layout.manifest.blobs, *(blob for one in referrers for blob in one.manifest.blobs)]
    return list({blob.digest: blob for blob in blobs}.values())
