"""Accounts, their users and the users' tokens."""

from __future__ import annotations

import re
from collections.abc import Collection
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from platform_server.errors import Conflict, Invalid
from platform_server.manager import agents
from platform_server.permissions import EVERYTHING, Permission
from platform_server.tables import Account, Token, User
from platform_server.tokens import USER_PREFIX, new_token

FIRST_ACCOUNT = "default"
ADMINISTRATOR = "admin"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,99}")


def first_account(session: Session, now: datetime) -> str:
    """Make the first account and its administrator, and the token that is shown once.

    Raises Conflict when there is an account already.
    """
    if session.scalars(select(Account.id).limit(1)).first() is not None:
        raise Conflict(
            "this platform is set up already",
            "disk-image platform token --state DIR makes another token for its administrator",
        )
    return user_token(session, FIRST_ACCOUNT, ADMINISTRATOR, (EVERYTHING,), now)


def user_token(
    session: Session, account: str, user: str, permissions: Collection[str], now: datetime
) -> str:
    """A new token for a user, with these permissions; account and user are made when they are new.

    Raises Invalid for a name or permission that breaks a rule.
    """
    known = {EVERYTHING, *Permission}
    for permission in permissions:
        if permission not in known:
            raise Invalid(field="permission", value=permission, rule=f"one of {', '.join(sorted(known))}")
    if not permissions:
        raise Invalid(field="permission", value=None, rule="at least one")
    owner = _user(session, _account(session, account, now), user, now)
    token, digest = new_token(USER_PREFIX)
    session.add(Token(user_id=owner.id, digest=digest, permissions=sorted(set(permissions)), created_at=now))
    return token


def revoke_tokens(session: Session, account: str, user: str, now: datetime) -> int:
    """Revoke every token of a user; how many there were."""
    tokens = session.scalars(
        select(Token)
        .join(User, Token.user_id == User.id)
        .join(Account, User.account_id == Account.id)
        .where(Account.name == account, User.name == user, Token.revoked_at.is_(None))
    ).all()
    for token in tokens:
        token.revoked_at = now
    return len(tokens)


def _account(session: Session, name: str, now: datetime) -> Account:
    found = session.scalars(select(Account).where(Account.name == name)).one_or_none()
    if found is None:
        found = Account(name=_checked("account", name), created_at=now)
        session.add(found)
        session.flush()
        agents.make(session, found.id, now)
    return found


def _user(session: Session, account: Account, name: str, now: datetime) -> User:
    found = session.scalars(
        select(User).where(User.account_id == account.id, User.name == name)
    ).one_or_none()
    if found is None:
        found = User(account_id=account.id, name=_checked("user", name), created_at=now)
        session.add(found)
        session.flush()
    return found


def _checked(field: str, name: str) -> str:
    if not _NAME.fullmatch(name):
        raise Invalid(
            field=field, value=name, rule="1 to 100 letters, digits, . _ @ + -, a letter or digit first"
        )
    return name
