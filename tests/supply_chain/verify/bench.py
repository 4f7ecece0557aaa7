"""Verifying layouts that a test has spoiled."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anyio
import pytest

from supply_chain.errors import VerificationError
from supply_chain.registry import Policy
from supply_chain.verify.image import Verified, verify_image
from supply_chain.verify.policy import SignerPolicy, signer_policy
from supply_chain.verify.source import open_source
from supply_chain.verify.steps import Step
from tests.supply_chain.verify.forge import IDENTITY, ISSUER, Forge
from tests.supply_chain.verify.signed_image import write

SIGNER = signer_policy(identity=IDENTITY, issuer=ISSUER)


class Bench:
    """Verifies with one trust."""

    def __init__(self, folder: Path, forge: Forge) -> None:
        self._folder = folder
        self._forge = forge
        self._count = 0

    def verify(self, files: Mapping[str, bytes], policy: SignerPolicy = SIGNER, **options: Any) -> Verified:
        """Verify a layout with these files."""
        self._count += 1
        return self.at(str(write(self._folder / str(self._count), files)), policy, **options)

    def at(
        self,
        image: str,
        policy: SignerPolicy = SIGNER,
        *,
        registry: Policy | None = None,
        **options: Any,
    ) -> Verified:
        """Verify what is in a folder, or with `registry` at a reference on loopback."""

        async def run() -> Verified:
            async with open_source(image, plain_http=registry is not None, policy=registry) as source:
                return await verify_image(source, self._forge.trust, policy, **options)

        return anyio.run(run)

    def refuse(self, files: Mapping[str, bytes], step: Step, **options: Any) -> VerificationError:
        """Verify a layout that this step must refuse."""
        with pytest.raises(VerificationError) as refused:
            self.verify(files, **options)
        assert refused.value.step == step
        return refused.value
