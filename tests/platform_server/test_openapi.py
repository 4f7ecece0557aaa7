"""What the platform says of itself holds: every answer has a status, a content type and a body that its
OpenAPI documents, what the schema forbids is refused, and nothing is a 5xx, whoever asks for whatever.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest
import schemathesis
from schemathesis.checks import CheckFunction
from schemathesis.config import (
    CoveragePhaseConfig,
    GenerationConfig,
    PhasesConfig,
    ProjectConfig,
    ProjectsConfig,
    SchemathesisConfig,
)
from schemathesis.specs.openapi.checks import ignored_auth, positive_data_acceptance
from sqlalchemy import update
from sqlalchemy.orm import Session

from platform_server.accounts import user_token
from platform_server.app import create_app
from platform_server.database import Database
from platform_server.permissions import Permission
from platform_server.sealing import Sealer
from platform_server.settings import Limits, Settings
from platform_server.state_folder import Platform, now
from platform_server.states import Status
from platform_server.tables import Agent, Webhook, WebhookStatus, Worker, WorkerRole, WorkerStatus
from tests.platform_server.api import plain
from tests.platform_server.made import Made
from tests.platform_server.rows import approval_request, node_platform, publication, verified
from tests.platform_server.serving import serving

SECRET = "pndis_" + "s" * 43
PLATFORM, PUBLICATION, WEBHOOK, WORKER, AGENT, REQUEST = (
    UUID(f"00000000-0000-7000-8000-{n:012}") for n in range(1, 7)
)
# What is there, so that paths lead to it; other ids are made up.
THERE = {
    "path.platform_id": str(PLATFORM),
    "path.publication_id": str(PUBLICATION),
    "path.webhook_id": str(WEBHOOK),
    "path.worker_id": str(WORKER),
    "path.agent_id": str(AGENT),
    "path.request_id": str(REQUEST),
}
NOT_ASKED: list[CheckFunction] = [
    # Not every rule can be said in a schema, such as what a regexp is.
    positive_data_acceptance,
    # It takes away a token that the test then adds again; test_authorisation.py tests each route.
    ignored_auth,
]


def _described(parameters: dict[str, str], *, coverage: bool = True) -> schemathesis.BaseSchema:
    """The OpenAPI as it is served, for requests with these parameters, the same ones in each run.

    `coverage`: also those with each bound of each field, kept and broken.
    """
    app = create_app(Platform(Path("none"), Database("sqlite:///none/platform.db"), Sealer(bytes(32))))
    generation = GenerationConfig(max_examples=10, deterministic=True, with_security_parameters=False)
    project = ProjectConfig(
        base_url="http://127.0.0.1",
        generation=generation,
        parameters=parameters,
        phases=PhasesConfig(coverage=CoveragePhaseConfig(enabled=coverage)),
    )
    config = SchemathesisConfig(seed=20260301, projects=ProjectsConfig(default=project))
    return schemathesis.openapi.from_dict(app.openapi(), config=config)


of_anything, of_what_is_there = _described({}), _described(THERE)
of_others = _described(THERE, coverage=False)


@dataclass(frozen=True)
class Served:
    """A platform with one of each thing, and tokens for it."""

    platform: Platform
    url: str
    administrator: str
    poor: str

    def restore(self) -> None:
        """Have the webhook take deliveries and the worker be one, whatever was done to them."""

        def work(session: Session) -> None:
            webhook, worker = session.get_one(Webhook, WEBHOOK), session.get_one(Worker, WORKER)
            webhook.status, worker.status = WebhookStatus.ACTIVE, WorkerStatus.ACTIVE
            webhook.plain_signatures = True
            webhook.secret = self.platform.sealer.seal(SECRET, f"webhook {WEBHOOK}")

        self.platform.database.write_now(work)


@pytest.fixture(scope="module")
def served(made_for_module: Made) -> Iterator[Served]:
    made = made_for_module
    platform = made.open(Settings(workers=0, limits=replace(Limits(), refusals_burst=1_000_000)))
    poor = platform.database.write_now(_make)
    with serving(platform) as (host, port):
        yield Served(platform, f"http://{host}:{port}", made.admin_token, poor)
    platform.database.close()


def _make(session: Session) -> str:
    """One of each thing; a token that may only read events."""
    at = now()
    debian = node_platform(session, at, id=PLATFORM)
    columns = {**verified(), "status": Status.PUBLISHED, "published_at": at}
    image = publication(session, at, debian, id=PUBLICATION, **columns)
    session.execute(update(Agent).values(id=AGENT))
    approval_request(session, at, image, id=REQUEST)
    debian.default_publication_id = PUBLICATION
    webhook = Webhook(
        id=WEBHOOK,
        account_id=debian.account_id,
        label="pipeline",
        label_key="pipeline",
        secret=b"",
        secret_preview=SECRET[:8],
        created_at=at,
        updated_at=at,
    )
    worker = Worker(
        id=WORKER,
        account_id=debian.account_id,
        name="builder",
        role=WorkerRole.CI_WORKER,
        token_digest=bytes(32),
        created_at=at,
        updated_at=at,
    )
    session.add_all([webhook, worker])
    return user_token(session, "default", "poor", [Permission.NODES_READ], at)


def _check(served: Served, case: Any, token: str | None, **options: Any) -> None:
    headers = {} if token is None else {"authorization": f"Bearer {token}"}
    case.call_and_validate(base_url=served.url, headers=headers, excluded_checks=NOT_ASKED, **options)


def _signed(request: Any) -> Any:
    """A request to the webhook with the signature of what is in it."""
    request.headers.update(plain(SECRET, request.body or b""))
    return request


@of_anything.parametrize()
def test_an_administrators_answers_are_as_documented(case: Any, served: Served) -> None:
    _check(served, case, served.administrator)


@of_what_is_there.parametrize()
def test_an_administrators_answers_about_what_is_there_are_as_documented(case: Any, served: Served) -> None:
    served.restore()
    _check(served, case, served.administrator, auth=_signed if "/built/" in case.path else None)


@pytest.mark.one_database  # who may not ask is refused before anything is looked for
@of_others.parametrize()
@pytest.mark.parametrize("who", ["poor", "nobody"])
def test_answers_to_who_may_not_ask_are_as_documented(case: Any, served: Served, who: str) -> None:
    _check(served, case, served.poor if who == "poor" else None)


def test_what_becomes_of_a_delivery_is_as_documented(served: Served) -> None:
    """Generated bodies never name the platform, so they are never accepted."""
    served.restore()
    operation = of_anything["/api/v1/system/webhooks/disk_image/built/{webhook_id}"]["POST"]
    url = f"{served.url}/api/v1/system/webhooks/disk_image/built/{WEBHOOK}"
    image = {"platform_slug": "debian", "oci_ref": "registry.example/os/debian:13", "git_sha": "a" * 40}
    for fields, status in (
        (image | {"sha256": "1" * 64}, 202),
        (image | {"sha256": "1" * 64}, 200),
        (image | {"sha256": "2" * 64}, 409),
        (image | {"platform_slug": "router"}, 422),
        (image | {"firmware_ref": "a" * 70_000}, 413),
    ):
        body = json.dumps(fields).encode()
        answer = httpx.post(url, content=body, headers=plain(SECRET, body), trust_env=False, timeout=60)
        assert answer.status_code == status, answer.text
        operation.validate_response(answer)
