"""What holds in a platform's database and folder after every transaction, whoever is killed and whatever is
restored. One function, `broken`, finds all that does not.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import inspect, select
from sqlalchemy.orm import Session

from platform_server.events import Kind
from platform_server.state_folder import Platform
from platform_server.states import KEPT, OPEN, Status
from platform_server.tables import (
    ApprovalRequest,
    Base,
    Candidate,
    Delivery,
    Event,
    Instance,
    InstanceStatus,
    Job,
    NodePlatform,
    Publication,
    Purge,
    RequestStatus,
    Webhook,
    WebhookStatus,
    Worker,
)
from platform_server.upload_files import file_of
from platform_server.webhooks import secrets_of

_STAMPS: Mapping[Status, str] = {
    Status.AWAITING_UPLOAD: "awaiting_upload_at",
    Status.VERIFYING: "verifying_at",
    Status.PUBLISHED: "published_at",
    Status.FAILED: "failed_at",
    Status.RETIRED: "retired_at",
    Status.PURGED: "purged_at",
}
_VERIFIED = (
    "oci_digest",
    "sha256",
    "size_bytes",
    "certificate_identity",
    "certificate_issuer",
    "sbom_digest",
    "provenance_digest",
)


@dataclass(frozen=True)
class _Found:
    """Everything that is there."""

    platforms: Mapping[UUID, NodePlatform]
    publications: Mapping[UUID, Publication]
    webhooks: Mapping[UUID, Webhook]
    workers: Mapping[UUID, Worker]
    jobs: Mapping[UUID, Job]
    purges: Mapping[UUID, Purge]
    deliveries: Sequence[Delivery]
    instances: Sequence[Instance]
    requests: Sequence[ApprovalRequest]
    candidates: Sequence[Candidate]
    events: Sequence[Event]

    def told(self, kind: Kind, **payload: str) -> Counter[str]:
        """How often an event of that kind, with those words, tells of which publication."""
        return Counter(
            each.payload["publication_id"]
            for each in self.events
            if each.kind == kind and all(each.payload.get(key) == word for key, word in payload.items())
        )


def broken(platform: Platform) -> list[str]:
    """What does not hold, one line each; nothing when all is well. Reads one state of the database."""

    def read(on: Session) -> list[str]:
        found = _Found(
            {row.id: row for row in on.scalars(select(NodePlatform))},
            {row.id: row for row in on.scalars(select(Publication).order_by(Publication.id))},
            {row.id: row for row in on.scalars(select(Webhook))},
            {row.id: row for row in on.scalars(select(Worker))},
            {row.id: row for row in on.scalars(select(Job))},
            {row.id: row for row in on.scalars(select(Purge))},
            on.scalars(select(Delivery)).all(),
            on.scalars(select(Instance)).all(),
            on.scalars(select(ApprovalRequest).order_by(ApprovalRequest.id)).all(),
            on.scalars(select(Candidate)).all(),
            on.scalars(select(Event).order_by(Event.id)).all(),
        )
        lines = [f"{rule.__name__[1:]}: {line}" for rule in _RULES for line in rule(found)]
        lines += [f"references: {line}" for line in _references(on)]
        lines += [f"uploads: {line}" for line in _uploads(platform, found)]
        lines += [f"secrets: {line}" for line in _secrets(platform, found)]
        return lines

    return platform.database.read_now(read)


def _stamps(found: _Found) -> Iterator[str]:
    """A row has the time of the state that it is in, and was published if its image was kept."""
    for row in found.publications.values():
        if (stamp := _STAMPS.get(row.status)) is not None and getattr(row, stamp) is None:
            yield f"{row.id} is {row.status} without {stamp}"
        times: list[datetime | None] = [row.created_at, row.published_at, row.purged_at]
        known = [each for each in times if each is not None]
        if known != sorted(known):
            yield f"{row.id}: created, published and purged are out of order: {known}"
        if row.status is Status.PUBLISHED and row.published_at is None:
            yield f"{row.id} is published and never was"


def _verified(found: _Found) -> Iterator[str]:
    """What was published was verified, by somebody."""
    for row in found.publications.values():
        if row.published_at is not None:
            missing = [name for name in _VERIFIED if getattr(row, name) is None]
            if missing or not row.cosign_verified:
                yield f"{row.id} was published without {', '.join(missing) or 'cosign_verified'}"
            if row.oci_digest != f"sha256:{row.sha256}":
                yield f"{row.id}: oci_digest {row.oci_digest} is not sha256 {row.sha256}"
        elif row.cosign_verified:
            yield f"{row.id} is verified and was never published"


def _one_image_a_commit(found: _Found) -> Iterator[str]:
    """For ever, also when it was retired or purged; and one row keeps an image, one claims a commit."""
    commits: dict[tuple[UUID, str, str], set[str | None]] = defaultdict(set)
    kept: Counter[tuple[UUID, str, str | None]] = Counter()
    claims: Counter[tuple[UUID, str, str]] = Counter()
    for row in found.publications.values():
        if row.git_sha is not None and row.published_at is not None:
            commits[row.node_platform_id, row.arch, row.git_sha].add(row.oci_digest)
        if row.status in KEPT and row.published_at is not None:
            kept[row.node_platform_id, row.arch, row.oci_digest] += 1
        if row.git_sha is not None and row.status in OPEN:
            claims[row.node_platform_id, row.arch, row.git_sha] += 1
    for commit, digests in commits.items():
        if len(digests) > 1:
            yield f"{commit} has {digests}"
    for key, count in [*kept.items(), *claims.items()]:
        if count > 1:
            yield f"{key} is there {count} times"


def _jobs(found: _Found) -> Iterator[str]:
    """What is to be verified has a job, and nothing else has one."""
    for row in found.publications.values():
        wanted = row.status in (Status.QUEUED, Status.VERIFYING)
        if wanted != (row.id in found.jobs):
            yield f"{row.id} is {row.status} and has {'no' if wanted else 'a'} job"


def _outcomes(found: _Found) -> Iterator[str]:
    """Each outcome is told, in the transaction that wrote it, and no other."""
    published, failed = found.told(Kind.PUBLISHED), found.told(Kind.PUBLISH_FAILED)
    retired = found.told(Kind.RETENTION_SWEPT, action="retired")
    purged = found.told(Kind.RETENTION_SWEPT, action="purged")
    for row in found.publications.values():
        name = str(row.id)
        expected = int(row.published_at is not None)
        if published.pop(name, 0) != expected:
            yield f"{row.id} is {row.status}: its publication is not told {expected} times"
        if row.status is Status.FAILED and row.duplicate_of_id is None and not failed[name]:
            yield f"{row.id} failed, and nothing tells so"
        if row.attempt_count < failed[name] and row.upload_sha256 is None:
            yield f"{row.id}: {failed[name]} failures told of {row.attempt_count} attempts"
        if purged.pop(name, 0) != (row.status is Status.PURGED):
            yield f"{row.id} is {row.status}: its purge is not told as often as it happened"
        if row.retired_at is None and retired[name]:
            yield f"{row.id} is told to be retired and never was"
    for name in {*published, *purged}:
        yield f"an event tells of {name}, which is not there"


def _duplicates(found: _Found) -> Iterator[str]:
    """A duplicate points to a row of its platform that published the same image."""
    for row in found.publications.values():
        if row.duplicate_of_id is None:
            continue
        first = found.publications.get(row.duplicate_of_id)
        if first is None or first.published_at is None:
            yield f"{row.id} is a duplicate of {row.duplicate_of_id}, which was never published"
        elif (first.node_platform_id, first.arch, first.oci_digest) != (
            row.node_platform_id,
            row.arch,
            row.oci_digest,
        ):
            yield f"{row.id} is a duplicate of {first.id}, which is another image"


def _defaults(found: _Found) -> Iterator[str]:
    """New nodes boot a published image of their platform; nodes that run, one that is there."""
    for platform in found.platforms.values():
        if platform.default_publication_id is None:
            if any(
                row.status is Status.PUBLISHED and row.node_platform_id == platform.id
                for row in found.publications.values()
            ):
                yield f"{platform.name} has published images and no default"
            continue
        row = found.publications.get(platform.default_publication_id)
        if row is None or row.node_platform_id != platform.id or row.status is not Status.PUBLISHED:
            yield f"{platform.name}: its default is {row and row.status}"
    for node in found.instances:
        row = found.publications.get(node.publication_id)
        if node.status is InstanceStatus.RUNNING and (row is None or row.status not in KEPT):
            yield f"node {node.id} boots an image that is {row and row.status}"


def _purges(found: _Found) -> Iterator[str]:
    """A purge that has begun knows what it deletes, until it is done."""
    for row in found.publications.values():
        begun = row.status is Status.RETIRED and row.purge_started_at is not None
        if begun != (row.id in found.purges):
            yield f"{row.id} is {row.status}, begun {row.purge_started_at}: a purge too many or few"


def _deliveries(found: _Found) -> Iterator[str]:
    """What came by a webhook has a delivery, one a key, and stays in its account."""
    answered = {each.publication_id for each in found.deliveries}
    keys = Counter((each.webhook_id, each.delivery_key) for each in found.deliveries)
    for key, count in keys.items():
        if count > 1:
            yield f"{key} is there {count} times"
    for row in found.publications.values():
        if row.webhook_id is not None and row.id not in answered:
            yield f"{row.id} came by a webhook and no delivery is answered with it"
    for each in found.deliveries:
        hook, answer = found.webhooks.get(each.webhook_id), found.publications.get(each.publication_id)
        if hook is None or answer is None or hook.account_id != answer.account_id:
            yield f"delivery {each.id} leads to another account, or nowhere"
    counts = Counter(each.webhook_id for each in found.deliveries)
    for hook in found.webhooks.values():
        if hook.received_count < counts[hook.id]:
            yield f"webhook {hook.id} received {hook.received_count}, of which {counts[hook.id]} are kept"


def _approvals(found: _Found) -> Iterator[str]:
    """A platform has one question at a time; what was decided says when, and each step is told once."""
    asked = [each for each in found.requests if each.status is RequestStatus.PENDING]
    for key, count in Counter((each.node_platform_id, each.action_category) for each in asked).items():
        if count > 1:
            yield f"{key} is asked about {count} times at once"
    told = Counter(
        (each.payload["approval_request_id"], each.kind == Kind.APPROVAL_REQUESTED)
        for each in found.events
        if "approval_request_id" in each.payload
    )
    for each in found.requests:
        is_open = each.status is RequestStatus.PENDING
        if (each.decided_at is None) != is_open or (is_open and (each.decided_by or each.reason)):
            yield f"approval request {each.id} is {each.status}, decided {each.decided_at}"
        if each.status is RequestStatus.APPROVED and each.decided_by_id is None:
            yield f"approval request {each.id} was approved by nobody"
        if (told[str(each.id), True], told[str(each.id), False]) != (1, int(not is_open)):
            yield f"approval request {each.id} is {each.status}: its steps are not told once each"
        row = found.publications[each.publication_id]
        if row.node_platform_id != each.node_platform_id or row.account_id != each.account_id:
            yield f"approval request {each.id} is about another platform's publication"
    for candidate in found.candidates:
        row = found.publications[candidate.publication_id]
        if row.node_platform_id != candidate.id or row.published_at is None:
            yield f"the candidate of {candidate.id} is {row.id}, which is none of its own images"


def _accounts(found: _Found) -> Iterator[str]:
    """Nothing of one account belongs to something of another."""
    for row in found.publications.values():
        owners = {
            row.account_id,
            found.platforms[row.node_platform_id].account_id,
            found.webhooks[row.webhook_id].account_id if row.webhook_id else row.account_id,
            found.workers[row.worker_id].account_id if row.worker_id else row.account_id,
        }
        if len(owners) > 1:
            yield f"publication {row.id} belongs to {owners}"
    for node in found.instances:
        if found.platforms[node.node_platform_id].account_id != node.account_id:
            yield f"node {node.id} belongs to another account than its platform"


_RULES: Sequence[Callable[[_Found], Iterator[str]]] = (
    _stamps,
    _verified,
    _one_image_a_commit,
    _jobs,
    _outcomes,
    _duplicates,
    _defaults,
    _purges,
    _deliveries,
    _approvals,
    _accounts,
)


def _references(on: Session) -> Iterator[str]:
    """Every reference leads to a row, and every table is there."""
    connection = on.connection()
    there = inspect(connection).get_table_names()
    for name, table in Base.metadata.tables.items():
        if name not in there:
            yield f"no table {name}"
            continue
        for column in table.columns:
            for key in column.foreign_keys:
                target = key.column
                dangling = on.execute(
                    select(table.c.id).where(column.is_not(None), column.not_in(select(target)))
                ).all()
                if dangling:
                    yield f"{name}.{column.name} of {[row.id for row in dangling[:3]]}"


def _uploads(platform: Platform, found: _Found) -> Iterator[str]:
    """An image that was uploaded is there, whole, as long as its row is kept or verified."""
    for row in found.publications.values():
        if row.upload_sha256 is None or row.purge_started_at is not None:
            continue
        if row.status is Status.VERIFYING or (row.status in KEPT and row.published_at is not None):
            file = file_of(platform, row.id)
            if not file.is_file() or file.stat().st_size != row.upload_size_bytes:
                yield f"{row.id} is {row.status}, and its file is not there, or not whole"


def _secrets(platform: Platform, found: _Found) -> Iterator[str]:
    """The folder's key opens every webhook's secret."""
    for hook in found.webhooks.values():
        if hook.status is not WebhookStatus.REVOKED:
            try:
                secrets_of(hook, platform.sealer, hook.created_at)
            except Exception as error:
                yield f"webhook {hook.id}: {error}"
