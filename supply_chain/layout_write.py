"""Hanging bundles on the image in an OCI image layout on disk.

Readers, and a kill at any moment, find the index from before or the one from after: blobs are there and on
disk before the index names them, and files come into being by rename(2). What is there is never written to,
since a layout's files may be links into a store. The image stays the index's first manifest.

Whoever writes the index holds the layout's folder for that moment. Signing and publishing, which take
longer, hold another folder in it each: publishing signs, and signing writes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryFile

from supply_chain.errors import LayoutError
from supply_chain.files import locked, read_regular, replace_file, sync_folder
from supply_chain.layout import Layout, not_a_layout, open_layout
from supply_chain.oci import EMPTY_CONTENT, digest_of
from supply_chain.referrer import Referrer


def hang(layout: Layout, referrers: Sequence[Referrer], *, replacing: Collection[str] = ()) -> Layout:
    """The layout with `referrers` in its index, and without the manifests of the digests `replacing`.

    Whatever else has come into the index since `layout` was read stays. Raises LayoutError when the layout
    can't be written, or holds another image by now; then its index is as it was.
    """
    folder = layout.folder
    try:
        # One writer at a time, so that none overwrites the other's entries.
        with locked(folder, wait=True):
            now = open_layout(folder)
            if now.image.digest != layout.image.digest:
                raise LayoutError(
                    f"{folder}: holds another image by now: expected {layout.image.digest}, "
                    f"found {now.image.digest}",
                    "sign the image that is there",
                )
            blobs = folder / "blobs" / "sha256"
            for content in (
                EMPTY_CONTENT,
                *(part for one in referrers for part in (one.bundle, one.content)),
            ):
                path = blobs / digest_of(content).removeprefix("sha256:")
                if not _holds(path, content):
                    replace_file(path, content)
            sync_folder(blobs)
            first, *others = now.index.manifests
            new = {one.descriptor.digest: one.descriptor for one in referrers}
            kept = [entry for entry in others if entry.digest not in {*replacing, *new}]
            index = now.index.model_copy(update={"manifests": (first, *kept, *new.values())})
            replace_file(folder / "index.json", index.to_bytes())
            sync_folder(folder)
    except OSError as error:
        raise _unwritable(folder, error) from None
    return open_layout(folder)


def check_writable(layout: Layout) -> None:
    """Raise LayoutError when files can't come into the layout now, so that `hang` could not write."""
    try:
        for folder in (layout.folder, layout.folder / "blobs" / "sha256"):
            TemporaryFile(dir=folder).close()
    except OSError as error:
        raise _unwritable(layout.folder, error) from None


@contextmanager
def alone(folder: Path, part: str, doing: str) -> Iterator[None]:
    """Do with the layout in `folder` what nobody else does meanwhile: `doing`, as in "another process is …
    it". What is locked is `part`, a folder that every layout has: no lock file is left behind, and a file
    could be other layouts' too.

    Raises LayoutError when somebody does it, or there is no such part.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(folder / part, wait=False))
        except BlockingIOError:
            raise LayoutError(
                f"{folder}: another process is {doing} it", "let it end, then run the same command again"
            ) from None
        except OSError as error:
            raise not_a_layout(folder, part, error) from None
        yield


def _unwritable(folder: Path, error: OSError) -> LayoutError:
    return LayoutError(
        f"{folder}: can't be written: {error.strerror or error}",
        "see that there is space, and that the folder and blobs/sha256 in it are yours to write to",
    )


def _holds(path: Path, content: bytes) -> bool:
    try:
        return read_regular(path, len(content)) == content
    except FileNotFoundError:
        return False
