"""Backups that are taken while the platform works: in each of them every invariant holds."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import anyio
import httpx
import pytest
from sqlalchemy import update

from platform_server import sweeps, upload_files
from platform_server.settings import Registries, Settings
from platform_server.state_folder import Platform
from platform_server.tables import Webhook
from tests.platform_server.api import Api, Pipeline
from tests.platform_server.backups import Target, put, take
from tests.platform_server.clock import Clock
from tests.platform_server.invariants import broken
from tests.platform_server.made import Made
from tests.platform_server.verifying import Trial

pytestmark = pytest.mark.timeout(600)
UPLOADS = "/worker_api/disk_image_publications"


@pytest.fixture
def settings() -> Settings:
    return Settings(workers=0, registries=Registries(plain_http=True))


class Load:
    """Threads that each do one thing again and again, until they are stopped; none may fail."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.errors: list[BaseException] = []
        self._stopped = threading.Event()
        self._threads: list[threading.Thread] = []

    def always(self, name: str, work: Callable[[int], object]) -> None:
        self.counts[name] = 0

        def run() -> None:
            try:
                while not self._stopped.is_set():
                    work(self.counts[name])
                    self.counts[name] += 1
            except BaseException as error:
                self.errors.append(error)

        self._threads.append(threading.Thread(target=run, daemon=True))
        self._threads[-1].start()

    def wait_for_more(self) -> None:
        """Until each has done it once more."""
        before = dict(self.counts)
        until = time.monotonic() + 120
        while not self.errors and any(self.counts[name] == before[name] for name in before):
            assert time.monotonic() < until, self.counts
            time.sleep(0.02)

    def stop(self) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join(60)
        if self.errors:
            raise self.errors[0]


@contextmanager
def loaded(trial: Trial, api: Api, clock: Clock) -> Iterator[Load]:
    """Webhooks arrive, of three images and one that is missing; a worker verifies; what is uploaded is no
    image; retention and uploads are swept, now and then a week later.
    """
    images = [trial.images.push(f"{number}", f"{number}", commit=f"{number:040x}") for number in range(3)]
    hook = api.post("/disk_image_webhooks", {"label": "load"})
    pipeline = Pipeline(api.client, clock, hook["webhook_id"], hook["webhook_secret"])
    worker = api.with_token(api.post("/ci_workers", {"name": "runner"})["token_plaintext"])
    trial.change(disk_image_retention_count=1)

    def deliver(number: int) -> None:
        answer = pipeline.plain(
            oci_ref=trial.images.ref(f"{number % (len(images) + 1)}"), sbom_path=f"{number}.json"
        )
        assert answer.status_code in (200, 202), answer.text

    def upload(number: int) -> None:
        content = f"upload {number}".encode() * 1000
        sha256 = hashlib.sha256(content).hexdigest()
        offer = {
            "platform_name": "debian",
            "sha256": sha256,
            "size_bytes": len(content),
            "git_sha": f"{number + 1000:040x}",
        }
        begun = worker.post(f"{UPLOADS}/initiate", offer)
        place = urlsplit(begun["signed_upload_url"])
        answer = api.client.put(f"{place.path}?{place.query}", content=content)
        if answer.status_code != 200:
            # a week has passed meanwhile
            assert answer.status_code in (403, 409), answer.text
            return
        body = {"publication_id": begun["publication_id"], "sha256_verify": sha256}
        worker.call("POST", f"{UPLOADS}/finalize", json=body)

    def sweep(number: int) -> None:
        clock.pass_by(days=8 if number % 5 == 4 else 0, minutes=1)
        anyio.run(sweeps.sweep_everything, trial.platform)
        anyio.run(upload_files.sweep, trial.platform)

    def verify(number: int) -> None:
        if not trial.work():
            time.sleep(0.01)

    load = Load()
    for name, work in {"deliver": deliver, "upload": upload, "sweep": sweep}.items():
        load.always(name, work)
    load.always("verify", verify)
    try:
        yield load
    finally:
        load.stop()


def test_every_invariant_holds_in_backups_taken_under_load(
    trial: Trial, api: Api, clock: Clock, made: Made, client: httpx.Client, tmp_path: Path
) -> None:
    secret = trial.platform.sealer.seal("pndis_secret", f"webhook {trial.webhook_id}")
    trial.write(lambda on: on.execute(update(Webhook).values(secret=secret)))
    backing_up = made.open()
    taken: list[Any] = []
    with loaded(trial, api, clock) as load, closing(backing_up.database):
        for number in range(4):
            load.wait_for_more()
            taken.append(take(backing_up, tmp_path / f"{number}.backup"))
    assert all(load.counts.values())
    rows = [each.manifest.tables["publications"].rows for each in taken]
    assert rows == sorted(rows)
    assert rows[0] < rows[-1]
    assert broken(trial.platform) == []
    for number, each in enumerate(taken):
        assert each.warnings == ()
        target = Target(tmp_path / f"restored-{number}")
        put(tmp_path / f"{number}.backup", target)
        restored: Platform = target.open()
        with closing(restored.database):
            assert broken(restored) == []
