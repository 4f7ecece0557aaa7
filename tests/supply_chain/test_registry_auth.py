"""Authentication: every scheme, every source of credentials, and canaries that must not show up anywhere."""

from __future__ import annotations

import base64
import json
import traceback
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from supply_chain.errors import AccessDenied, BrokenAnswer, CredentialError, NotFound, SupplyChainError
from supply_chain.oci import MANIFEST, Descriptor, digest_of
from supply_chain.registry import (
    Credential,
    Credentials,
    DockerCredentials,
    GivenCredentials,
    Policy,
    Repository,
    open_repository,
    read_bytes,
)
from supply_chain.registry.challenge import Challenge, parse_challenges
from tests.supply_chain.registry_server import Fault, Planned, RegistryServer, registry

PASSWORD = "c4n4ry-pa:ssword"
IDENTITY = "c4n4ry-identity"
CONTENT = b"some content"
BLOB = Descriptor(media_type="application/octet-stream", digest=digest_of(CONTENT), size=len(CONTENT))


def _encoded(user: str, password: str) -> str:
    return base64.b64encode(f"{user}:{password}".encode()).decode()


def _with(
    server: RegistryServer,
    policy: Policy,
    credentials: Credentials | None,
    work: Callable[[Repository], Any],
) -> Any:
    async def run() -> Any:
        async with open_repository(
            server.host, "team/image", plain_http=True, policy=policy, credentials=credentials
        ) as repository:
            return await work(repository)

    return anyio.run(run)


async def _upload(repository: Repository) -> None:
    await repository.upload(BLOB, read_bytes(CONTENT))


def _config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: Mapping[str, object] | str) -> Path:
    path = tmp_path / "docker" / "config.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(config if isinstance(config, str) else json.dumps(config))
    monkeypatch.setenv("DOCKER_CONFIG", str(path.parent))
    return path


def _helper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    program = tmp_path / "bin" / "docker-credential-test"
    program.parent.mkdir(exist_ok=True)
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")


def _given(server: RegistryServer) -> GivenCredentials:
    return GivenCredentials({server.host: Credential("user", PASSWORD)})


def test_anonymous_token(server: RegistryServer, policy: Policy) -> None:
    server.auth = "bearer"
    _with(server, policy, None, _upload)
    assert BLOB.digest in server.repo("team/image").blobs
    tokens = [one for one in server.seen if one.path.startswith("/token")]
    assert [one.authorization for one in tokens] == [None]
    assert "service=test.registry" in tokens[0].path
    assert "scope=repository%3Ateam%2Fimage%3Apull%2Cpush" in tokens[0].path


def test_one_token_serves_all_requests_of_a_scope(server: RegistryServer, policy: Policy) -> None:
    server.auth = "bearer"

    async def work(repository: Repository) -> None:
        async with anyio.create_task_group() as group:
            for number in range(8):
                content = b"%d" % number
                blob = Descriptor(media_type="a/b", digest=digest_of(content), size=len(content))
                group.start_soon(repository.upload, blob, read_bytes(content))

    _with(server, policy, None, work)
    assert sum(one.path.startswith("/token") for one in server.seen) == 1


def test_basic(server: RegistryServer, policy: Policy) -> None:
    server.auth, server.users = "basic", {"user": PASSWORD}
    _with(server, policy, _given(server), _upload)
    assert BLOB.digest in server.repo("team/image").blobs


def test_bearer_with_user_and_password(server: RegistryServer, policy: Policy) -> None:
    server.auth, server.users = "bearer", {"user": PASSWORD}
    _with(server, policy, _given(server), _upload)
    assert BLOB.digest in server.repo("team/image").blobs
    # the password goes to the token server alone
    for one in server.seen:
        basic = (one.authorization or "").startswith("Basic")
        assert basic == one.path.startswith("/token")


def test_identity_token_is_exchanged(server: RegistryServer, policy: Policy) -> None:
    server.auth, server.refresh_tokens = "bearer", {IDENTITY}
    credentials = GivenCredentials({server.host: Credential(identity_token=IDENTITY)})
    _with(server, policy, credentials, _upload)
    assert BLOB.digest in server.repo("team/image").blobs
    assert [one.method for one in server.seen if one.path.startswith("/token")] == ["POST"]


def test_registry_token_is_used_as_it_is(server: RegistryServer, policy: Policy) -> None:
    server.auth = "bearer"
    server.tokens["r3gistry"] = ["repository:team/image:pull,push"]
    credentials = GivenCredentials({server.host: Credential(registry_token="r3gistry")})
    _with(server, policy, credentials, _upload)
    assert not [one for one in server.seen if one.path.startswith("/token")]


def test_an_expired_token_is_replaced_in_the_middle(server: RegistryServer, policy: Policy) -> None:
    server.auth = "bearer"
    content = bytes(policy.chunk * 4)
    blob = Descriptor(media_type="a/b", digest=digest_of(content), size=len(content))
    server.faults = [Planned(Fault.UNAUTHORIZED, where=lambda method, path: method == "PATCH")]

    async def work(repository: Repository) -> None:
        await repository.upload(blob, read_bytes(content))

    _with(server, policy, None, work)
    assert server.repo("team/image").blobs[blob.digest] == content
    assert sum(one.path.startswith("/token") for one in server.seen) == 2


def test_a_token_past_its_end_is_renewed_before_a_body_is_sent(
    server: RegistryServer, policy: Policy
) -> None:
    server.auth, server.token_life = "bearer", 0
    _with(server, replace(policy), None, _upload)
    server.token_life = 1

    async def work(repository: Repository) -> None:
        for number in range(2):
            content = b"%d" % number
            blob = Descriptor(media_type="a/b", digest=digest_of(content), size=len(content))
            await repository.upload(blob, read_bytes(content))
            await anyio.sleep(0.6)

    server.seen.clear()
    _with(server, policy, None, work)
    assert [one.status for one in server.seen].count(401) == 1


@pytest.mark.parametrize("auth", ["basic", "bearer"])
def test_a_wrong_password_says_so_once(auth: str, server: RegistryServer, policy: Policy) -> None:
    server.auth, server.users = auth, {"user": "another"}
    with pytest.raises(AccessDenied) as caught:
        _with(server, policy, _given(server), _upload)
    assert "docker login" in caught.value.hint
    assert "anew" in caught.value.hint
    assert server.count <= 3


def test_no_credential_says_how_to_log_in(server: RegistryServer, policy: Policy) -> None:
    server.auth, server.users = "basic", {"user": PASSWORD}
    with pytest.raises(AccessDenied) as caught:
        _with(server, policy, None, _upload)
    assert f"docker login {server.host}" in caught.value.hint


def test_a_token_that_is_always_refused_ends(server: RegistryServer, policy: Policy) -> None:
    server.auth = "bearer"
    server.faults = [Planned(Fault.UNAUTHORIZED, where=lambda method, path: path != "/token", times=1000)]
    with pytest.raises(AccessDenied):
        _with(server, policy, None, _upload)
    assert server.count == 3


# credentials go nowhere else


def test_a_redirect_to_another_host_gets_no_credential(server: RegistryServer, policy: Policy) -> None:
    with registry() as storage:
        server.auth, server.users = "basic", {"user": PASSWORD}
        server.redirect_blobs = f"http://{storage.host}"
        storage.repo("team/image").blobs[BLOB.digest] = CONTENT
        assert (
            _with(server, policy, _given(server), lambda repository: repository.read(BLOB, 100)) == CONTENT
        )
        assert [one.authorization for one in storage.seen] == [None]


def test_a_challenge_of_a_redirect_target_is_not_answered(server: RegistryServer, policy: Policy) -> None:
    with registry() as storage:
        server.auth, server.users = "basic", {"user": PASSWORD}
        storage.auth, storage.users = "basic", {"user": PASSWORD}
        server.redirect_blobs = f"http://{storage.host}"
        with pytest.raises(SupplyChainError):
            _with(server, policy, _given(server), lambda repository: repository.read(BLOB, 100))
        assert {one.authorization for one in storage.seen} == {None}


def test_a_redirect_to_plain_http_elsewhere_is_refused(server: RegistryServer, policy: Policy) -> None:
    server.redirect_blobs = "http://storage.example.org"
    with pytest.raises(BrokenAnswer, match="not https") as caught:
        _with(server, policy, None, lambda repository: repository.read(BLOB, 100))
    assert "s1gned" not in str(caught.value)


def test_redirects_in_a_circle_end(server: RegistryServer, policy: Policy) -> None:
    server.redirect_blobs = f"http://{server.host}"
    with pytest.raises(BrokenAnswer, match="redirects"):
        _with(server, policy, None, lambda repository: repository.read(BLOB, 100))


@pytest.mark.parametrize(
    "realm", ["http://auth.example.org/token", "ftp://127.0.0.1/", "not a url", "//x:y@z/"]
)
def test_a_realm_without_tls_elsewhere_gets_nothing(
    realm: str, server: RegistryServer, policy: Policy
) -> None:
    server.auth, server.users, server.realm = "bearer", {"user": PASSWORD}, realm
    with pytest.raises(BrokenAnswer):
        _with(server, policy, _given(server), _upload)


def test_credentials_are_for_one_host_and_port(server: RegistryServer, policy: Policy) -> None:
    server.auth, server.users = "basic", {"user": PASSWORD}
    other = GivenCredentials(
        {"127.0.0.1": Credential("user", PASSWORD), "127.0.0.1:1": Credential("u", PASSWORD)}
    )
    with pytest.raises(AccessDenied):
        _with(server, policy, other, _upload)
    assert {one.authorization for one in server.seen} == {None}


# Docker's configuration


@pytest.mark.parametrize(
    "entry",
    [
        {"auth": _encoded("user", PASSWORD)},
        {"username": "user", "password": PASSWORD},
        {"auth": _encoded("user", PASSWORD + "\0\0")},
    ],
)
@pytest.mark.parametrize(
    "key", ["{host}", "https://{host}/v1/", "http://{host}", "{host}/team", "{host}/team/image"]
)
def test_auths(
    entry: dict[str, str], key: str, server: RegistryServer, policy: Policy, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    server.auth, server.users = "basic", {"user": PASSWORD}
    _config(tmp_path, monkeypatch, {"auths": {key.format(host=server.host): entry}})
    _with(server, policy, None, _upload)
    assert BLOB.digest in server.repo("team/image").blobs


def test_an_identity_token_in_auths(
    server: RegistryServer, policy: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.auth, server.refresh_tokens = "bearer", {IDENTITY}
    entry = {"auth": _encoded("<token>", ""), "identitytoken": IDENTITY}
    _config(tmp_path, monkeypatch, {"auths": {server.host: entry}})
    _with(server, policy, None, _upload)


def test_the_most_specific_key_wins(
    server: RegistryServer, policy: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.auth, server.users = "basic", {"user": PASSWORD}
    wrong, right = {"auth": _encoded("user", "wrong")}, {"auth": _encoded("user", PASSWORD)}
    keys = {server.host: wrong, f"{server.host}/team": right, f"{server.host}/other": wrong}
    _config(tmp_path, monkeypatch, {"auths": keys})
    _with(server, policy, None, _upload)


@pytest.mark.parametrize("setting", ["credHelpers", "credsStore"])
def test_helpers(
    setting: str, server: RegistryServer, policy: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.auth, server.users = "basic", {"user": PASSWORD}
    answer = json.dumps({"ServerURL": server.host, "Username": "user", "Secret": PASSWORD})
    _helper(tmp_path, monkeypatch, f'[ "$1" = get ] && [ "$(cat)" = "{server.host}" ] && echo \'{answer}\'')
    _config(tmp_path, monkeypatch, {setting: {server.host: "test"} if setting == "credHelpers" else "test"})
    _with(server, policy, None, _upload)
    assert BLOB.digest in server.repo("team/image").blobs


def test_a_helper_with_an_identity_token(
    server: RegistryServer, policy: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.auth, server.refresh_tokens = "bearer", {IDENTITY}
    _helper(tmp_path, monkeypatch, f'echo \'{{"Username": "<token>", "Secret": "{IDENTITY}"}}\'')
    _config(tmp_path, monkeypatch, {"credHelpers": {server.host: "test"}})
    _with(server, policy, None, _upload)


def test_a_helper_without_the_host_falls_back_to_auths(
    server: RegistryServer, policy: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.auth, server.users = "basic", {"user": PASSWORD}
    _helper(tmp_path, monkeypatch, "echo credentials not found in native keychain; exit 1")
    config = {"credsStore": "test", "auths": {server.host: {"auth": _encoded("user", PASSWORD)}}}
    _config(tmp_path, monkeypatch, config)
    _with(server, policy, None, _upload)


@pytest.mark.parametrize(
    ("attack", "helper", "script"),
    [
        ("a path as helper", "../../bin/sh", "exit 0"),
        ("a flag as helper", "-x", "exit 0"),
        ("not installed", "absent", "exit 0"),
        ("fails with its secret in the output", "test", f"echo {PASSWORD}; echo {PASSWORD} >&2; exit 3"),
        ("prints no JSON but the secret", "test", f"echo {PASSWORD}"),
        ("prints other JSON", "test", f"echo '[\"{PASSWORD}\"]'"),
        ("prints nothing", "test", "exit 0"),
    ],
)
def test_a_broken_helper_is_an_error_without_the_secret(
    attack: str, helper: str, script: str, server: RegistryServer, policy: Policy, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, everything_logged: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    server.auth = "basic"
    _helper(tmp_path, monkeypatch, script)
    _config(tmp_path, monkeypatch, {"credHelpers": {server.host: helper}})
    with pytest.raises(CredentialError) as caught:
        _with(server, policy, None, _upload)
    assert caught.value.hint, attack
    assert "c4n4ry" not in _everything(caught.value) + everything_logged.text


@pytest.mark.parametrize(
    ("attack", "config"),
    [
        ("no JSON", PASSWORD),
        ("cut", '{"auths": {"HOST": {"auth": "' + PASSWORD),
        ("a key twice", '{"auths": {}, "auths": {}}'),
        ("a list", "[]"),
        ("auths no object", '{"auths": ["' + PASSWORD + '"]}'),
        ("an entry no object", '{"auths": {"HOST": "' + PASSWORD + '"}}'),
        ("auth no base64", '{"auths": {"HOST": {"auth": "' + PASSWORD + '"}}}'),
        (
            "auth without colon",
            '{"auths": {"HOST": {"auth": "' + base64.b64encode(b"c4n4ry").decode() + '"}}}',
        ),
        ("a number as password", '{"auths": {"HOST": {"username": "u", "password": 1}}}'),
        ("too large", " " * 1_100_000),
    ],
)
def test_a_broken_configuration_is_an_error_without_its_content(
    attack: str, config: str, server: RegistryServer, policy: Policy, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    server.auth = "basic"
    path = _config(tmp_path, monkeypatch, config.replace("HOST", server.host))
    with pytest.raises(CredentialError) as caught:
        _with(server, policy, None, _upload)
    assert str(path) in caught.value.what, attack
    assert "c4n4ry" not in _everything(caught.value)


def test_files_in_the_order_of_containers_auth_json(tmp_path: Path) -> None:
    host = "registry.example.org"
    places = {
        "REGISTRY_AUTH_FILE": tmp_path / "explicit.json",
        "DOCKER_CONFIG": tmp_path / "docker" / "config.json",
        "XDG_RUNTIME_DIR": tmp_path / "run" / "containers" / "auth.json",
        "XDG_CONFIG_HOME": tmp_path / "config" / "containers" / "auth.json",
    }
    environment = {
        "REGISTRY_AUTH_FILE": str(tmp_path / "explicit.json"),
        "DOCKER_CONFIG": str(tmp_path / "docker"),
        "XDG_RUNTIME_DIR": str(tmp_path / "run"),
        "XDG_CONFIG_HOME": str(tmp_path / "config"),
        "HOME": str(tmp_path / "home"),
    }
    for name, path in places.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"auths": {host: {"username": name, "password": "x"}}}))
    found = []
    for path in places.values():
        credential = anyio.run(DockerCredentials(environment).find, host, "a")
        assert credential is not None
        found.append(credential.username)
        path.unlink()
    assert found == list(places)
    assert anyio.run(DockerCredentials(environment).find, host, "a") is None


# canaries


def _everything(error: BaseException) -> str:
    """All that a person or a log could see of an error, causes included."""
    shown = "".join(traceback.format_exception(error))
    seen: BaseException | None = error
    while seen is not None:
        shown += f"{seen!r} {seen} {getattr(seen, 'hint', '')} {getattr(seen, 'codes', '')}"
        seen = seen.__cause__ or seen.__context__
    return shown


@pytest.mark.parametrize("auth", ["basic", "bearer"])
@pytest.mark.parametrize(
    "fault",
    [None, Fault.ERROR, Fault.BUSY, Fault.HTML, Fault.CUT_BEFORE, Fault.CUT_AFTER, Fault.WRONG_BYTES],
)
def test_no_secret_in_errors_logs_and_reprs(
    auth: str, fault: Fault | None, server: RegistryServer, policy: Policy,
    everything_logged: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    server.auth, server.users, server.echo_authorization = auth, {"user": PASSWORD}, True
    server.repo("team/image").manifests[BLOB.digest] = (MANIFEST, CONTENT)
    if fault is not None:
        server.faults = [Planned(fault, where=lambda method, path: "/v2/" in path, times=1000)]
    credentials = _given(server)
    shown = repr(credentials) + repr(credentials.by_registry)

    async def work(repository: Repository) -> None:
        nonlocal shown
        for action in (
            lambda: _upload(repository),
            lambda: repository.manifests.get("absent"),
            lambda: repository.manifests.get(BLOB.digest),
            lambda: repository.referrers.list(BLOB.digest),
        ):
            try:
                await action()
            except SupplyChainError as error:
                shown += _everything(error)
        shown += repr(vars(repository)) + repr(vars(repository.manifests))

    _with(server, policy, credentials, work)
    shown += everything_logged.text
    assert shown.count("127.0.0.1") > 3
    for secret in ("c4n4ry", _encoded("user", PASSWORD), "t0ken-"):
        assert secret not in shown


def test_a_registry_that_repeats_the_credential_in_its_error_is_not_quoted(
    server: RegistryServer, policy: Policy
) -> None:
    server.auth, server.users, server.echo_authorization = "bearer", {"user": PASSWORD}, True
    with pytest.raises(NotFound) as caught:
        _with(server, policy, _given(server), lambda repository: repository.manifests.get("absent"))
    assert "***" in caught.value.what
    assert "t0ken" not in _everything(caught.value)


# the challenge's grammar

TOKEN = st.from_regex(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,10}", fullmatch=True)
VALUE = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=20)


@given(
    st.lists(
        st.tuples(TOKEN, st.dictionaries(TOKEN.map(str.lower), VALUE, max_size=4)), min_size=1, max_size=3
    )
)
def test_challenges_are_read_as_written(challenges: list[tuple[str, dict[str, str]]]) -> None:
    def quoted(value: str) -> str:
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'

    written = ", ".join(
        scheme
        + (" " if parameters else "")
        + ", ".join(f"{name}={quoted(value)}" for name, value in parameters.items())
        for scheme, parameters in challenges
    )
    assert parse_challenges([written]) == [Challenge(scheme.lower(), each) for scheme, each in challenges]


@given(st.text(max_size=200))
def test_any_header_is_read_without_an_error(header: str) -> None:
    for challenge in parse_challenges([header]):
        assert challenge.scheme == challenge.scheme.lower()


def test_several_challenges_and_forms() -> None:
    found = parse_challenges(
        ['Negotiate YII=, Basic realm=simple, Bearer realm="https://a/b?c,d",service="x, \\"y\\""']
    )
    assert found == [
        Challenge("negotiate"),
        Challenge("basic", {"realm": "simple"}),
        Challenge("bearer", {"realm": "https://a/b?c,d", "service": 'x, "y"'}),
    ]
