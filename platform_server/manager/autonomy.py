"""Policies, changed and shown. A change is all of its updates or none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.orm import Session

from platform_server import node_platforms
from platform_server.errors import Invalid, Missing, shown
from platform_server.events import Kind, Told, emit
from platform_server.manager import agents
from platform_server.manager.policies import DEFAULTS, OF_PLATFORMS
from platform_server.permissions import Caller
from platform_server.tables import AutonomyPolicy, Category, NodePlatform, Policy


@dataclass(frozen=True, slots=True)
class Update:
    """One policy as it was asked for: words that nobody checked. None: the next wider scope's."""

    action_category: str
    policy: str | None
    node_platform_id: UUID | None = None
    agent_id: UUID | None = None


@dataclass(frozen=True, slots=True)
class Rule:
    """A policy and where it comes from: `node_platform`, `account`, or `default`."""

    action_category: Category
    policy: Policy
    scope: str
    node_platform_id: UUID | None = None
    updated_at: datetime | None = None
    updated_by_id: UUID | None = None


def rules(session: Session, account_id: UUID) -> Sequence[Rule]:
    """Each category's policy for the account, and those that node platforms have of their own."""
    rows = session.scalars(
        select(AutonomyPolicy).where(AutonomyPolicy.account_id == account_id).order_by(AutonomyPolicy.id)
    ).all()
    found = []
    for category, usual in DEFAULTS.items():
        set_here = [row for row in rows if row.action_category is category]
        if all(row.node_platform_id is not None for row in set_here):
            found.append(Rule(category, usual, "default"))
        found += [
            Rule(
                category,
                row.policy,
                "account" if row.node_platform_id is None else "node_platform",
                row.node_platform_id,
                row.updated_at,
                row.updated_by_id,
            )
            for row in sorted(set_here, key=lambda row: row.node_platform_id is not None)
        ]
    return found


def update(session: Session, caller: Caller, updates: Sequence[Update], at: datetime) -> int:
    """Carry out all updates; how many policies are others now, each told by an event.

    Raises Invalid with the error of each update that can't be carried out, by its index; then nothing is
    changed.
    """
    agent_id = agents.get(session, caller, None).id
    problems = [
        f"updates[{index}].{problem}"
        for index, each in enumerate(updates)
        if (problem := _problem(session, caller, each, agent_id)) is not None
    ]
    if not updates:
        problems = ["updates: expected at least one, found none"]
    if problems:
        raise Invalid(what="; ".join(problems), hint="correct them, then send all of them again")
    return sum(_set(session, caller, each, at) for each in updates)


def _problem(session: Session, caller: Caller, each: Update, agent_id: UUID) -> str | None:
    """What is wrong with an update: field, rule and value."""
    if each.action_category not in set(Category):
        return f"action_category: expected one of {', '.join(Category)}, found {shown(each.action_category)}"
    if each.policy is not None and each.policy not in set(Policy):
        return f"policy: expected one of {', '.join(Policy)}, found {shown(each.policy)}"
    if each.agent_id not in (None, agent_id):
        return f"agent_id: expected {agent_id} or none, found {each.agent_id}"
    if each.node_platform_id is None:
        return None
    if each.action_category not in OF_PLATFORMS:
        return f"node_platform_id: expected none, since {each.action_category} is about no node platform"
    try:
        node_platforms.get(session, caller, each.node_platform_id)
    except Missing as error:
        return f"node_platform_id: {error.what}"
    return None


def _set(session: Session, caller: Caller, each: Update, at: datetime) -> bool:
    category = Category(each.action_category)
    if each.node_platform_id is not None:
        # What the manager decides for this platform now, it decides before or after.
        node_platforms.hold(session, each.node_platform_id)
    row = session.scalars(
        select(AutonomyPolicy)
        .where(
            AutonomyPolicy.account_id == caller.account_id,
            AutonomyPolicy.action_category == category,
            AutonomyPolicy.node_platform_id.is_(None)
            if each.node_platform_id is None
            else AutonomyPolicy.node_platform_id == each.node_platform_id,
        )
        .with_for_update()
    ).one_or_none()
    before = None if row is None else row.policy
    if before == each.policy:
        return False
    if each.policy is None:
        session.delete(row)
    elif row is None:
        row = AutonomyPolicy(
            account_id=caller.account_id,
            node_platform_id=each.node_platform_id,
            action_category=category,
            policy=Policy(each.policy),
            updated_by_id=caller.user_id,
            created_at=at,
            updated_at=at,
        )
        session.add(row)
    else:
        row.policy, row.updated_by_id, row.updated_at = Policy(each.policy), caller.user_id, at
    session.flush()
    named = None if each.node_platform_id is None else session.get(NodePlatform, each.node_platform_id)
    payload = {
        "action_category": category,
        "policy": each.policy,
        "prior_policy": before,
        "node_platform_id": None if named is None else str(named.id),
        "platform_name": None if named is None else named.name,
        "by_user_id": None if caller.user_id is None else str(caller.user_id),
    }
    emit(session, caller.account_id, Kind.POLICY_UPDATED, payload, Told("operator"), at)
    return True
