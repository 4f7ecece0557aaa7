"""Signed images in a registry on loopback, as the platform finds them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

from supply_chain.oci import digest_of
from supply_chain.statement import PROVENANCE
from tests.supply_chain.registry_server import RegistryServer
from tests.supply_chain.verify.forge import HONEST, Forge, Names
from tests.supply_chain.verify.signed_image import COMMIT, Signed, bundle, make_image, statements_of

REPOSITORY = "os/debian"


@dataclass(frozen=True)
class Images:
    """A registry and a signer."""

    server: RegistryServer
    forge: Forge

    def push(
        self,
        name: str = "debian",
        tag: str = "13",
        names: Names = HONEST,
        commit: str = COMMIT,
        objects: int = 20_000,
    ) -> Signed:
        """A signed image by that name at the tag, built from the commit, with so many bytes of objects."""
        image = make_image(name, objects)
        statements = statements_of(image, names.identity)
        statements[PROVENANCE] = statements[PROVENANCE].replace(COMMIT.encode(), commit.encode())
        signed = Signed(image, {kind: bundle(self.forge, each, names) for kind, each in statements.items()})
        self.put(signed.files)
        self.server.repo(REPOSITORY).tags[tag] = image.digest
        return signed

    def put(self, files: Mapping[str, bytes]) -> None:
        """A layout's blobs and manifests."""
        repo = self.server.repo(REPOSITORY)
        for content in (content for path, content in files.items() if path.startswith("blobs/")):
            repo.blobs[digest_of(content)] = content
            # an image's noise may begin like JSON
            with suppress(ValueError):
                if content.startswith(b"{") and "layers" in (loaded := json.loads(content)):
                    repo.manifests[digest_of(content)] = (loaded["mediaType"], content)

    def ref(self, target: str = "13") -> str:
        """The reference of a tag or digest."""
        return f"{self.server.host}/{REPOSITORY}{'@' if ':' in target else ':'}{target}"
