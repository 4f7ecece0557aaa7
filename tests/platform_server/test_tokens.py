"""Tokens: shown once, kept as digests, good for their permissions until they are revoked."""

from __future__ import annotations

import pytest

from platform_server.accounts import revoke_tokens, user_token
from platform_server.errors import Forbidden, Invalid, Unauthenticated
from platform_server.permissions import Permission
from platform_server.state_folder import Platform
from platform_server.tokens import authenticate
from tests.platform_server.clock import Clock
from tests.platform_server.made import Made


def test_the_administrator_may_everything(platform: Platform, made: Made) -> None:
    caller = platform.database.read_now(lambda on: authenticate(on, made.admin_token))
    assert all(caller.may(permission) for permission in Permission)


def test_a_token_has_its_own_permissions_alone(platform: Platform, clock: Clock) -> None:
    token = platform.database.write_now(
        lambda on: user_token(on, "default", "reader", [Permission.PLATFORMS_READ], clock())
    )
    caller = platform.database.read_now(lambda on: authenticate(on, token))
    caller.require(Permission.PLATFORMS_READ)
    with pytest.raises(Forbidden, match=r"reader lacks the permission system\.platforms\.create"):
        caller.require(Permission.PLATFORMS_CREATE)


def test_an_account_is_made_with_its_first_token_and_is_apart(
    platform: Platform, made: Made, clock: Clock
) -> None:
    token = platform.database.write_now(lambda on: user_token(on, "other", "admin", ["*"], clock()))
    mine = platform.database.read_now(lambda on: authenticate(on, made.admin_token))
    theirs = platform.database.read_now(lambda on: authenticate(on, token))
    assert mine.account_id != theirs.account_id


@pytest.mark.parametrize("token", [None, "", "pnu_", "swt_unknown", "Bearer", "pnu_" + "x" * 10_000, "é"])
def test_no_unknown_or_malformed_token_is_anyone(platform: Platform, token: str | None) -> None:
    with pytest.raises(Unauthenticated):
        platform.database.read_now(lambda on: authenticate(on, token))


def test_a_revoked_token_is_nobodys(platform: Platform, made: Made, clock: Clock) -> None:
    assert platform.database.write_now(lambda on: revoke_tokens(on, "default", "admin", clock())) == 1
    with pytest.raises(Unauthenticated):
        platform.database.read_now(lambda on: authenticate(on, made.admin_token))


def test_no_token_is_in_the_database(made: Made) -> None:
    content = made.content()
    assert made.admin_token.encode() not in content
    assert b"pnu_" not in content


@pytest.mark.parametrize(
    ("account", "user", "permission"),
    [("a b", "x", "*"), ("a", "", "*"), ("a", "x\n", "*"), ("a", "x", "system.everything")],
)
def test_names_and_permissions_have_rules(
    platform: Platform, clock: Clock, account: str, user: str, permission: str
) -> None:
    with pytest.raises(Invalid, match="expected"):
        platform.database.write_now(lambda on: user_token(on, account, user, [permission], clock()))
