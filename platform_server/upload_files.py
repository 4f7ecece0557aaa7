"""Direct upload, as files: where an image's bytes are put, and how they are taken.

A place is a URL that says until when it is good, signed with the platform's key; who has it needs no token.

1. place: the signature holds, and its time has not passed.
2. row: the publication still waits for its upload.
3. turn: nobody else is putting its bytes right now.
4. bytes: of the size that was initiated, none missing and none more, and none comes too slowly.
5. digest: the sha256 that was initiated; only then does the file get its name, after it is on the disk.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
from collections.abc import AsyncIterable, AsyncIterator, Iterable
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import BinaryIO
from uuid import UUID

import anyio
from anyio import to_thread

from platform_server import uploads
from platform_server.errors import Forbidden, Invalid, TooLarge, TooOften, TooSlow, Unwritable
from platform_server.identifiers import new_id
from platform_server.metrics import sweeping
from platform_server.state_folder import Platform
from platform_server.tables import Publication
from supply_chain.files import sync_folder

log = logging.getLogger(__name__)

# Below it a place is the publication's id; to put the bytes, and to get them.
PATH = "/api/v1/system/uploads"
# Room that uploads leave for the database.
RESERVE = 1024**3
_CHUNK = 1 << 20
_NAME = re.compile(r"([0-9a-f-]{36})\.tar")
_AGAIN = "ask for it again: a place is good for a while only"


class UploadFiles:
    """The uploads of one platform, which one process serves."""

    def __init__(self, platform: Platform) -> None:
        self._platform = platform
        self._coming: set[UUID] = set()

    def place(self, row: Publication) -> tuple[str, datetime]:
        """Path and query of the place for a row's bytes, and until when it is good."""
        until = uploads.until(row, self._platform.settings.schedule.upload)
        return self.signed("PUT", row.id, until), until

    def signed(self, method: str, publication_id: UUID, until: datetime) -> str:
        """Path and query that let whoever has them do `method` until then."""
        expires = int(until.timestamp())
        signature = self._platform.sealer.sign(_signed(method, publication_id, expires))
        return f"{publication_id}?expires={expires}&signature={signature}"

    def check(self, method: str, publication_id: UUID, expires: int, signature: str) -> float:
        """For how many seconds more a place is good. Raises Forbidden."""
        left = expires - self._platform.clock().timestamp()
        text = _signed(method, publication_id, expires)
        if not self._platform.sealer.is_signed(text, signature) or left <= 0:
            raise Forbidden("this place is not valid, or no longer", _AGAIN)
        return left

    def path(self, publication_id: UUID) -> Path:
        """Where an uploaded image is, or will be."""
        return file_of(self._platform, publication_id)

    async def take(
        self,
        publication_id: UUID,
        expires: int,
        signature: str,
        length: int | None,
        body: AsyncIterable[bytes],
    ) -> Publication:
        """Keep the bytes of `body`, of which `length` were announced, for the row that is returned. Raises
        Refused, and then keeps nothing.
        """
        platform = self._platform
        left = self.check("PUT", publication_id, expires, signature)  # 1
        row = await platform.database.read(lambda on: uploads.awaited(on, publication_id))  # 2
        size, sha256 = row.upload_size_bytes or 0, row.upload_sha256
        if length is not None and length != size:
            raise Invalid(field="Content-Length", value=length, rule=f"{size}, as initiated")
        if publication_id in self._coming:  # 3
            raise TooOften(
                "the bytes of this upload are coming already", "wait until that is over, then put them", 2.0
            )
        self._coming.add(publication_id)
        path = file_of(platform, publication_id)
        part = path.with_name(f"{publication_id}.{new_id()}.part")
        try:
            with anyio.fail_after(left):
                found = await self._write(part, size, body)  # 4
            if found != sha256:  # 5
                raise Invalid(field="sha256", value=found, rule=f"{sha256}, as initiated")
            await to_thread.run_sync(_rename, part, path)
            return row
        except TimeoutError:
            raise TooSlow("the upload did not end in time", _AGAIN) from None
        except OSError as error:
            log.error("an upload can't be kept: %s", error.strerror or error)
            raise Unwritable(
                f"the upload can't be kept: {error.strerror or error}",
                "the platform's operator has to see to it; put the bytes again later",
            ) from None
        finally:
            self._coming.discard(publication_id)
            part.unlink(missing_ok=True)

    def arrived(self, row: Publication) -> bool:
        """Whether the row's bytes are there; what has the name has been checked."""
        return file_of(self._platform, row.id).is_file()

    def space(self) -> int:
        """How many bytes an upload may have at most now."""
        free = shutil.disk_usage(self._platform.uploads).free - RESERVE
        return min(self._platform.settings.limits.upload, free)

    async def _write(self, part: Path, size: int, body: AsyncIterable[bytes]) -> str:
        """Write the body to a new file; its sha256 in hex."""
        sha256 = hashlib.sha256()
        taken = 0
        descriptor = os.open(
            part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600
        )
        with os.fdopen(descriptor, "wb") as file:
            async for chunk in _collected(body, self._platform.settings.limits.body_seconds):
                taken += len(chunk)
                if taken > size:
                    raise TooLarge(f"body: expected {size} bytes, as initiated, found more", "send the file")
                await to_thread.run_sync(_append, file, sha256, chunk)
            if taken != size:
                raise Invalid(field="body", value=taken, rule=f"{size} bytes, as initiated")
            await to_thread.run_sync(_sync, file)
        return sha256.hexdigest()


def file_of(platform: Platform, publication_id: UUID) -> Path:
    """Where an uploaded image is."""
    return platform.uploads / uploads.upload_name(publication_id)


def remove(platform: Platform, publication_id: UUID) -> None:
    """Delete an uploaded image; one that is not there is no error."""
    file_of(platform, publication_id).unlink(missing_ok=True)


async def sweep(platform: Platform) -> int:
    """Fail the uploads that were abandoned, and delete the files that nobody needs; how many failed."""
    at = platform.clock()
    before = at - platform.settings.schedule.upload
    failed = await platform.database.write(lambda on: uploads.expire(on, before, at))
    # listed before the rows are read: what comes later has a row by then
    files = await to_thread.run_sync(kept, platform.uploads)
    needed = await platform.database.read(lambda on: uploads.needed(on, sorted(files)))
    await to_thread.run_sync(_delete, [files[each] for each in files.keys() - needed])
    await to_thread.run_sync(_delete, await to_thread.run_sync(_left_parts, platform.uploads, before))
    return failed


async def sweep_always(platform: Platform) -> None:
    """Sweep now and then, until cancelled."""
    while True:
        with sweeping("uploads"):
            await sweep(platform)
        await anyio.sleep(platform.settings.schedule.upload.total_seconds() / 4)


def kept(folder: Path) -> dict[UUID, Path]:
    """The uploaded images that are in the folder."""
    return {UUID(found[1]): path for path in folder.iterdir() if (found := _NAME.fullmatch(path.name))}


def _left_parts(folder: Path, before: datetime) -> list[Path]:
    """What a killed process left; one that still grows is younger."""
    limit = before.timestamp()
    left = []
    for path in folder.glob("*.part"):
        # one may have got its name since it was listed
        with suppress(FileNotFoundError):
            if path.stat().st_mtime < limit:
                left.append(path)
    return left


def _delete(paths: Iterable[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def _signed(method: str, publication_id: UUID, expires: int) -> str:
    return f"{method} {publication_id} {expires}"


async def _collected(body: AsyncIterable[bytes], silence: float) -> AsyncIterator[bytes]:
    """The body in pieces that are worth a write. Raises TooSlow when nothing comes for `silence` seconds."""
    pieces = aiter(body)
    collected = bytearray()
    while True:
        try:
            with anyio.fail_after(silence):
                collected += await anext(pieces)
        except TimeoutError:
            raise TooSlow(f"body: expected bytes, found none for {silence:g} s", "put them again") from None
        except StopAsyncIteration:
            break
        if len(collected) >= _CHUNK:
            yield bytes(collected)
            collected.clear()
    if collected:
        yield bytes(collected)


def _append(file: BinaryIO, sha256: hashlib._Hash, chunk: bytes) -> None:
    sha256.update(chunk)
    file.write(chunk)


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _rename(part: Path, path: Path) -> None:
    part.rename(path)
    sync_folder(path.parent)
