"""Publishing under outages, crashes and reruns in any order: one signing, one delivery, and in the end all
of it done. The services are modelled; the steps and the state's file are the real ones.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections import defaultdict
from datetime import UTC, datetime
from pathlib import Path

import anyio
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from platform_client.errors import PlatformError, Unreachable
from platform_client.webhook import Taken, WebhookBody
from supply_chain.errors import ServiceDown, SupplyChainError, Unavailable, VerificationError
from supply_chain.publish.announcement import Facts, announcement
from supply_chain.publish.state import PublishState, StateFile
from supply_chain.publish.steps import Published, run_steps
from supply_chain.push import PushResult
from supply_chain.reference import parse_reference
from supply_chain.verify.image import Verified
from supply_chain.verify.policy import Signer

REFERENCE = parse_reference("registry.example/os/debian:13")
SIGNER = Signer("https://git.example/os/images", "https://git.example/oidc")


class Crash(Exception):
    """The process ends here, as by kill -9."""


class World:
    """What exists outside the process, and what happens to it."""

    def __init__(self) -> None:
        self.up = {"signing": True, "registry": True, "platform": True}
        self.answers_arrive = True
        # What survives of images, by digest.
        self.signed: set[str] = set()
        self.certificates: defaultdict[str, int] = defaultdict(int)
        self.pushed: set[str] = set()
        self.delivered: dict[str, bytes] = {}
        self.told_of: defaultdict[str, set[str]] = defaultdict(set)
        # The images that the state says were signed, and those verified in the present run.
        self.recorded: set[str] = set()
        self.verified: set[str] = set()
        # Whose state is on disk, and how many deliveries each image may have had: one more for each of its
        # states that was lost.
        self.state_image: str | None = None
        self.allowed: defaultdict[str, int] = defaultdict(lambda: 1)
        # Points passed until the process ends; None: it does not.
        self.crash_after: int | None = None

    def state_of(self, image: str | None) -> None:
        """The state on disk is now this image's (None: nobody's)."""
        if self.state_image is not None and self.state_image != image:
            self.allowed[self.state_image] += 1
        self.state_image = image

    def point(self) -> None:
        """A place where a process may end."""
        if self.crash_after is not None:
            self.crash_after -= 1
            if self.crash_after < 0:
                raise Crash


class CrashingFile(StateFile):
    """The state's file, in a process that may end before and after it is replaced."""

    def __init__(self, layout: Path, world: World) -> None:
        super().__init__(layout)
        self._world = world

    def save(self, state: PublishState) -> None:
        self._world.point()
        self._world.state_of(state.image)
        super().save(state)
        self._world.recorded = {state.image} if state.signer is not None else set()
        self._world.point()


class ModelRelease:
    def __init__(self, world: World, image: str) -> None:
        self._world = world
        self._image = image

    async def is_signed_by(self, signer: Signer) -> bool:
        self._world.point()
        return signer == SIGNER and self._image in self._world.signed

    async def sign(self) -> tuple[Signer, bool]:
        world = self._world
        assert not (self._image in world.signed and self._image in world.recorded), "nobody needs to sign"
        if not world.up["signing"]:
            raise ServiceDown("signing", "later")
        world.point()
        if self._image in world.signed:
            return SIGNER, False
        world.certificates[self._image] += 1
        world.signed.add(self._image)
        world.point()
        return SIGNER, True

    async def push(self) -> PushResult:
        world = self._world
        assert self._image in world.signed
        if not world.up["registry"]:
            raise Unavailable("registry", "later")
        world.point()
        sent = int(self._image not in world.pushed)
        world.pushed.add(self._image)
        world.point()
        return PushResult(str(REFERENCE), self._image, 1 - sent, 0, sent, sent, 0, ())

    async def verify(self, image: str, signer: Signer) -> Verified:
        if not self._world.up["registry"]:
            raise Unavailable("registry", "later")
        self._world.point()
        assert signer == SIGNER
        if image not in self._world.pushed:
            raise VerificationError("not there", "push it")
        self._world.verified.add(image)
        return verified(image)


class ModelPlatform:
    webhook = "0f" * 32
    slug = "debian"

    def __init__(self, world: World) -> None:
        self._world = world

    def body(self, verified: Verified) -> WebhookBody:
        return announcement(self.slug, REFERENCE, Facts.of(verified))

    async def deliver(self, delivery_id: str, body: bytes) -> Taken:
        world = self._world
        if not world.up["platform"]:
            raise Unreachable("platform", "later")
        world.point()
        known = world.delivered.setdefault(delivery_id, body)
        assert known == body, "one id has one body"
        image = WebhookBody.model_validate_json(body).oci_digest
        assert image in world.verified, "told of what was not verified"
        hit = bool(world.told_of[image])
        world.told_of[image].add(delivery_id)
        world.point()
        if not world.answers_arrive:
            raise Unreachable("platform", "later")
        return Taken("idempotent_hit" if hit else "queued", "1")


def verified(image: str) -> Verified:
    return Verified(
        image=str(REFERENCE.at(image)),
        digest=image,
        identity=SIGNER.identity,
        issuer=SIGNER.issuer,
        signed_at=datetime(2026, 1, 1, tzinfo=UTC),
        arch="amd64",
        kernel_version="6.12",
        composefs_digest=image,
        size=1000,
        layers_read=False,
        packages=1,
        builder_id=SIGNER.identity,
        git_shas=("1f" * 20,),
        signature=image,
        sbom=image,
        provenance=image,
        ignored=(),
    )


class Publishing(RuleBasedStateMachine):
    """One layout, published again and again."""

    def __init__(self) -> None:
        super().__init__()
        self._folder = tempfile.TemporaryDirectory()
        self.world = World()
        self.image = ""

    @initialize()
    def start(self) -> None:
        self.rebuild(0)

    @rule(number=st.integers(0, 2))
    def rebuild(self, number: int) -> None:
        """The layout now has this image, which may have been there before."""
        image = f"sha256:{hashlib.sha256(bytes([number])).hexdigest()}"
        if image != self.image:
            # a layout that is built anew has no signatures
            self.world.signed.discard(image)
            self.world.certificates[image] = 0
            self.image = image

    @rule(service=st.sampled_from(("signing", "registry", "platform")), up=st.booleans())
    def outage(self, service: str, up: bool) -> None:
        self.world.up[service] = up

    @rule(arrive=st.booleans())
    def answers(self, arrive: bool) -> None:
        self.world.answers_arrive = arrive

    @rule()
    def registry_forgets(self) -> None:
        self.world.pushed.clear()

    @precondition(lambda self: self.file.path.exists())
    @rule(
        content=st.sampled_from((b"", b"{", b"null", b"[]", b'{"schema_version": 2}', b"\xff" * 10)),
    )
    def state_is_damaged(self, content: bytes) -> None:
        self.file.path.write_bytes(content)
        self.world.recorded.clear()
        self.world.state_of(None)

    @rule()
    def half_written_state_is_left(self) -> None:
        """By a process that ended inside `save`."""
        self.file.path.with_name(f"{self.file.path.name}.new").write_bytes(b'{"image":')

    @rule(crash_after=st.integers(0, 12))
    def run_until_killed(self, crash_after: int) -> None:
        self.world.crash_after = crash_after
        try:
            self._run()
        except Crash:
            pass
        except (SupplyChainError, PlatformError) as error:
            self._failed(error)
        finally:
            self.world.crash_after = None

    @rule()
    def run_to_the_end(self) -> None:
        try:
            done = self._run()
        except (SupplyChainError, PlatformError) as error:
            self._failed(error)
            assert not (all(self.world.up.values()) and self.world.answers_arrive)
        else:
            assert done.told is not None
            assert self.world.told_of[self.image]

    @invariant()
    def signed_once(self) -> None:
        assert all(count <= 1 for count in self.world.certificates.values())

    @invariant()
    def one_delivery(self) -> None:
        """Unless the state was damaged or made way for another image's; then one more each time."""
        for image, ids in self.world.told_of.items():
            assert len(ids) <= self.world.allowed[image]

    def teardown(self) -> None:
        """Everything is back: the same command completes, and once more it has nothing to do."""
        self.world.up = dict.fromkeys(self.world.up, True)
        self.world.answers_arrive = True
        first = self._run()
        told = set(self.world.told_of[self.image])
        again = self._run()
        assert first.told is not None
        assert again.told is not None
        assert again.told.now is False
        assert again.told.delivery_id == first.told.delivery_id
        assert again.signed_now is False
        assert again.pushed.blob_bytes_sent == 0
        assert self.world.told_of[self.image] == told
        self.signed_once()
        self.one_delivery()
        self._folder.cleanup()

    @property
    def file(self) -> CrashingFile:
        """As each process opens it anew."""
        return CrashingFile(Path(self._folder.name) / "layout", self.world)

    def _failed(self, error: Exception) -> None:
        """Whatever failed after signing, as whom it was signed is on disk."""
        assert isinstance(error, ServiceDown) or self.image in self.world.recorded

    def _run(self) -> Published:
        self.world.verified.clear()
        release, platform = ModelRelease(self.world, self.image), ModelPlatform(self.world)
        return anyio.run(lambda: run_steps(self.image, self.file, release, platform, lambda line: None))


TestPublishing = Publishing.TestCase
TestPublishing.settings = settings(max_examples=60, stateful_step_count=25)
