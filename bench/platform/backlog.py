"""A backlog of images that were reported while nothing verified, drained by one worker: the time for each
image against verification alone of the same images, one after the other.

Some images are tiny, so that what the platform does around a verification weighs as much as it can, and some
have an ordinary root. The first image of each is not counted: it loads what verifying needs.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TypeVar

import anyio

from bench.platform.figures import ratio, spread, table
from bench.platform.images import Pushed, pushed
from bench.platform.load import send
from bench.platform.machine import cpu
from bench.platform.served import Home, Hook, Kind, Served, Site, serving, webhook
from platform_server.registries import open_trusted
from platform_server.settings import Registries
from platform_server.verifier import verifier_of
from supply_chain.reference import parse_reference
from supply_chain.verify.policy import signer_policy
from supply_chain.verify.source import RegistrySource
from tests.platform_server.verifying import POLICY

# How many of how many bytes; with the one that is not counted, at most as many as a platform can keep.
SIZES = {"tiny": (49, 20_000), "128 MiB": (8, 128 << 20)}
_PATIENCE = 600.0
# Seconds between two questions, which the server answers beside its work.
_ASKED = 0.5
_Found = TypeVar("_Found")


@dataclass
class _Samples:
    """Of each run the seconds, and those of CPU, for an image."""

    seconds: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)


def main(site: Site, runs: int) -> None:
    """For each size alone, then drained from each database, as often as there are runs."""
    for name, (count, size) in SIZES.items():
        alone, drained = _Samples(), {kind: _Samples() for kind in Kind}
        with pushed(site.folder / f"trust-{count}", count + 1, size) as images:
            for run in range(runs):
                anyio.run(_alone, images, alone)
                for kind in Kind:
                    _drain(site.home(kind, f"backlog-{count}-{run}"), images, drained[kind])
        print(
            f"\nbacklog: {count} signed images, {name}, one worker (median, least and most of {runs} runs)"
        )
        rows = [("verification alone", alone), *drained.items()]
        table(
            ("", "ms an image", "cpu ms an image"),
            [
                [
                    label,
                    *(
                        spread([each * 1000 for each in found], 1)
                        for found in (samples.seconds, samples.cpu)
                    ),
                ]
                for label, samples in rows
            ],
        )
        for kind in Kind:
            ratio(f"{kind} / verification alone", drained[kind].seconds, alone.seconds)
    print("  goal: a backlog drains at the speed of verification alone")


async def _alone(images: Pushed, samples: _Samples) -> None:
    verify, settings = verifier_of(images.trust), Registries(plain_http=True)
    policy = signer_policy(
        identity_regexp=POLICY["cosign_identity_regexp"], issuer_regexp=POLICY["cosign_issuer_regexp"]
    )
    started = used = 0.0
    gc.freeze()  # as disk-image does
    for number, ref in enumerate(images.refs):
        if number == 1:
            started, used = time.monotonic(), time.process_time()
        reference = parse_reference(ref)
        async with open_trusted(reference, [images.host], settings) as repository:
            await verify(RegistrySource(reference, repository), policy)
    samples.seconds.append((time.monotonic() - started) / (len(images.refs) - 1))
    samples.cpu.append((time.process_time() - used) / (len(images.refs) - 1))


def _drain(home: Home, images: Pushed, samples: _Samples) -> None:
    with serving(home, "--workers", "0") as platform:
        policy = {
            "trusted_registries": [images.host],
            "disk_image_retention_count": len(images.refs),
            **POLICY,
        }
        hook = webhook(platform, **policy)
        send(platform.port, _deliveries(hook, images.refs), connections=4)
        (owner,) = platform.get("/node_platforms")["node_platforms"]
    path = f"/node_platforms/{owner['id']}/disk_image_publications"
    with serving(home, "--workers", "1", "--trust", str(images.trust), "--plain-http") as platform:
        begun = _wait(lambda: platform.get(path, status="published")["disk_image_publications"])
        used = cpu(platform.pid)
        _wait(lambda: _done(platform, path))
        used = cpu(platform.pid) - used
        rows = platform.get(path, limit=200)["disk_image_publications"]
    if refused := [row["error_message"] for row in rows if row["status"] != "published"]:
        raise RuntimeError(f"honest images were refused: {refused}")
    published = sorted(datetime.fromisoformat(row["published_at"]) for row in rows)
    samples.seconds.append((published[-1] - published[0]).total_seconds() / (len(images.refs) - 1))
    samples.cpu.append(used / (len(published) - len(begun)))


def _deliveries(hook: Hook, refs: Sequence[str]) -> list[bytes]:
    """Each names its image by digest, as `disk-image publish` does."""
    return [
        hook.request(platform_slug="debian", oci_ref=ref, oci_digest=ref.partition("@")[2]) for ref in refs
    ]


def _done(platform: Served, path: str) -> bool:
    """Whether the last one that was reported, which is the last in the queue, has an outcome."""
    (last,) = platform.get(path, limit=1)["disk_image_publications"]
    return last["status"] not in ("queued", "verifying")


def _wait(found: Callable[[], _Found]) -> _Found:
    """Until something is found. Raises RuntimeError when that takes too long."""
    until = time.monotonic() + _PATIENCE
    while time.monotonic() < until:
        if result := found():
            return result
        time.sleep(_ASKED)
    raise RuntimeError(f"the backlog was not drained in {_PATIENCE:.0f} s")
