"""What the platform is told of an image. It takes nobody's word for any of it: it fetches and verifies."""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass

from pydantic import ValidationError

from pipelines.errors import UsageError
from platform_client.webhook import WebhookBody
from supply_chain.errors import InvalidDocument
from supply_chain.oci import parse_object
from supply_chain.provenance import GIT_SHA, parse_provenance
from supply_chain.reference import Reference
from supply_chain.referrer import BUNDLE_LIMIT
from supply_chain.statement import PROVENANCE, parse_statement
from supply_chain.verify.content import read_content, read_manifest
from supply_chain.verify.image import Verified
from supply_chain.verify.source import Source
from supply_chain.verify.steps import Step, within


@dataclass(frozen=True, slots=True)
class Facts:
    """Of the image with the manifest digest `digest`: architecture, the size of its blobs in bytes, and the
    commits that its provenances name, the newest first where that is known.
    """

    digest: str
    arch: str
    size: int
    git_shas: tuple[str, ...]

    @classmethod
    def of(cls, verified: Verified) -> Facts:
        """Those of an image that was verified."""
        return cls(verified.digest, verified.arch, verified.size, verified.git_shas)


async def read_facts(source: Source) -> Facts:
    """Those of an image that is whole, but of which no signature was verified.

    Raises VerificationError when it is not whole, and what the source raises when it can't serve.
    """
    with within(Step.MANIFEST):
        document = await source.image()
        manifest = read_manifest(document)
    digest = document.descriptor.digest
    with within(Step.CONTENT):
        content = await read_content(source, digest, manifest, read_layers=False)
    with within(Step.REFERRERS):
        hanging = await source.referrers(digest)
        bundles = [await source.read(one.bundle, BUNDLE_LIMIT) for one in hanging if one.bundle]
    commits = dict.fromkeys(commit for one in bundles if (commit := _commit(one, digest)) is not None)
    return Facts(digest, content.config.arch, content.size, tuple(commits))


def announcement(
    platform_slug: str, reference: Reference, facts: Facts, *, git_sha: str | None = None
) -> WebhookBody:
    """The webhook's body for the image in `reference`'s repository, which it names by digest: a tag could be
    moved before the platform looks.

    `git_sha` chooses among the commits that its provenances name. Raises UsageError.
    """
    if git_sha is not None and not re.fullmatch(GIT_SHA, git_sha):
        raise UsageError(
            f"--git-sha: expected 40 or 64 lower-case hex digits, found {git_sha[:80]!r}",
            "name the commit in full",
        )
    if git_sha is not None and facts.git_shas and git_sha not in facts.git_shas:
        raise UsageError(
            f"--git-sha: expected {' or '.join(facts.git_shas)}, as the image's provenance says, "
            f"found {git_sha}",
            "leave --git-sha out, or build from that commit",
        )
    chosen = git_sha or (facts.git_shas[0] if facts.git_shas else None)
    try:
        return WebhookBody.model_validate(
            {
                "platform_slug": platform_slug,
                # what platforms call the same
                "platform_name": platform_slug,
                "oci_ref": str(reference.at(facts.digest)),
                "sha256": facts.digest.removeprefix("sha256:"),
                "size_bytes": facts.size,
                "git_sha": chosen,
                "arch": facts.arch,
                "oci_digest": facts.digest,
            }
        )
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise UsageError(
            f"--platform-slug: {first['msg']}, found {platform_slug[:80]!r}", "name a platform of yours"
        ) from None


def _commit(bundle: bytes, digest: str) -> str | None:
    """The commit that a bundle's provenance names for this image; None when it is something else."""
    try:
        envelope = parse_object(bundle, "bundle").get("dsseEnvelope")
        payload = envelope.get("payload") if isinstance(envelope, dict) else None
        if not isinstance(payload, str):
            return None
        statement = parse_statement(base64.b64decode(payload, validate=True), "statement")
        if statement.predicate_type != PROVENANCE or statement.digest != digest:
            return None
        return parse_provenance(statement.predicate, "provenance").build_definition.git_sha
    except (InvalidDocument, ValueError):
        return None
