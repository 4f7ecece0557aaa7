"""A registry on loopback with switches for everything that registries, proxies and networks do wrong.

Real HTTP over real sockets, state in memory. `RegistryServer.faults` are played at chosen requests; the rest
are properties of the registry: which APIs it has, how it authenticates, where it redirects.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from tests.loopback import Cut, Handler, LoopbackServer, serving

INDEX = "application/vnd.oci.image.index.v1+json"
_PATH = re.compile(
    r"/v2/(?P<name>.+)/(?P<kind>blobs/uploads|blobs|manifests|referrers|tags)/(?P<rest>[^/]*)"
)


class Fault(StrEnum):
    """What goes wrong with one request."""

    CUT_BEFORE = "the connection is cut before the request is read"
    CUT_IN_BODY = "the connection is cut in the middle of the request's body, of which half is kept"
    CUT_AFTER = "the request is carried out, the connection is cut instead of an answer"
    CUT_IN_ANSWER = "the connection is cut in the middle of the answer's body"
    TOO_MANY = "429 with Retry-After"
    ERROR = "500"
    BUSY = "503 with Retry-After"
    TRICKLE = "the answer's body comes a byte at a time"
    WRONG_BYTES = "a byte of the answer's body is another one"
    TRUNCATED = "the answer is well-formed but half as long"
    HTML = "a login page with status 200"
    UNAUTHORIZED = "401, as for a token that has just expired"
    LOST_UPLOAD = "the upload session is gone"
    LOST_BLOB = "the upload is confirmed, but the blob is not kept"


@dataclass
class Planned:
    """A fault and the requests it hits: by count from 0, or by what they are, so many times."""

    fault: Fault
    at: int | None = None
    where: Callable[[str, str], bool] | None = None
    times: int = 1

    def hits(self, number: int, method: str, path: str) -> bool:
        if self.times <= 0:
            return False
        hit = number == self.at if self.at is not None else self.where is None or self.where(method, path)
        self.times -= hit
        return hit


@dataclass(frozen=True)
class Seen:
    """A request as it came."""

    method: str
    path: str
    authorization: str | None
    body_bytes: int
    status: int


@dataclass
class Repo:
    """What one repository holds."""

    blobs: dict[str, bytes] = field(default_factory=dict)
    manifests: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)


class RegistryServer(LoopbackServer):
    """Change the public attributes before or between requests."""

    def __init__(self, tls: tuple[Path, Path] | None = None) -> None:
        super().__init__(_Handler, tls)
        self.lock = threading.RLock()
        self.repos: dict[str, Repo] = {}
        self.uploads: dict[str, bytearray] = {}
        self.seen: list[Seen] = []
        self.faults: list[Planned] = []
        self.count = 0
        self.referrers_api = True
        self.deletes = {"manifests", "blobs"}
        self.tags_page = 1000
        self.referrers_page = 100
        self.says_subject = True
        self.mounts = True
        self.ranges = True
        self.absolute_locations = False
        self.chunk_least: int | None = None
        self.retry_after = "1"
        self.redirect_blobs: str | None = None
        self.auth: str | None = None
        self.realm: str | None = None
        self.users: dict[str, str] = {}
        self.refresh_tokens: set[str] = set()
        self.tokens: dict[str, list[str]] = {}
        self.token_life = 300
        self.echo_authorization = False
        self.overwrite_fallback: list[bytes] = []

    def repo(self, name: str) -> Repo:
        return self.repos.setdefault(name, Repo())

    def sent(self, method: str) -> int:
        """Bytes of bodies that came with `method`."""
        return sum(one.body_bytes for one in self.seen if one.method == method)


@contextmanager
def registry(tls: tuple[Path, Path] | None = None) -> Iterator[RegistryServer]:
    """A registry for the length of a test."""
    with serving(RegistryServer(tls)) as server:
        yield server


class _Handler(Handler):
    server: RegistryServer

    def _handle(self) -> None:
        server = self.server
        self._taken = 0
        self._recorded = False
        url = urlsplit(self.path)
        with server.lock:
            number = server.count
            server.count += 1
            planned = [one.fault for one in server.faults if one.hits(number, self.command, url.path)]
        self._fault = planned[0] if planned else None
        try:
            self._play(url.path, {name: values[0] for name, values in parse_qs(url.query).items()})
        except Cut:
            self._record(0)
            self.cut()

    do_GET = do_HEAD = do_PUT = do_POST = do_PATCH = do_DELETE = _handle

    def _play(self, path: str, query: dict[str, str]) -> None:
        server, fault = self.server, self._fault
        if fault is Fault.CUT_BEFORE:
            raise Cut
        length = int(self.headers.get("content-length", 0))
        body = self.rfile.read(length // 2 if fault is Fault.CUT_IN_BODY else length)
        self._taken = len(body)
        if fault is Fault.CUT_IN_BODY:
            if self.command == "PATCH" and (session := path.rsplit("/", 1)[-1]) in server.uploads:
                server.uploads[session] += body
            raise Cut
        if fault in (Fault.TOO_MANY, Fault.ERROR, Fault.BUSY):
            status = {Fault.TOO_MANY: 429, Fault.ERROR: 500, Fault.BUSY: 503}[fault]
            headers = {} if fault is Fault.ERROR else {"Retry-After": server.retry_after}
            return self._refuse(status, "TOOMANYREQUESTS" if status == 429 else "UNKNOWN", **headers)
        if fault is Fault.HTML:
            return self._answer(
                200, b"<!DOCTYPE html><title>Log in</title>", **{"Content-Type": "text/html"}
            )
        if fault is Fault.UNAUTHORIZED:
            server.tokens.clear()
            return self._challenge("")
        if path == "/token":
            return self._token(body, query)
        found = _PATH.fullmatch(path)
        if found is None:
            return self._refuse(404, "NAME_UNKNOWN")
        name, kind, rest = found["name"], found["kind"], found["rest"]
        action = {"GET": "pull", "HEAD": "pull", "DELETE": "delete"}.get(self.command, "push")
        if not self._allowed(name, action):
            return self._challenge(f"repository:{name}:{'pull,push' if action == 'push' else action}")
        if self.command == "DELETE" and kind not in server.deletes:
            return self._refuse(405, "UNSUPPORTED")
        if fault is Fault.LOST_UPLOAD and kind == "blobs/uploads":
            server.uploads.clear()
        with server.lock:
            getattr(self, "_" + kind.replace("/", "_"))(server.repo(name), name, rest, query, body)

    # blobs

    def _blobs(self, repo: Repo, name: str, digest: str, query: dict[str, str], body: bytes) -> None:
        if self.server.redirect_blobs is not None and self.command == "GET":
            elsewhere = f"{self.server.redirect_blobs}/v2/{name}/blobs/{digest}?signature=s1gned"
            return self._answer(307, Location=elsewhere)
        content = repo.blobs.get(digest)
        if content is None:
            return self._refuse(404, "BLOB_UNKNOWN")
        if self.command == "DELETE":
            del repo.blobs[digest]
            return self._answer(202)
        headers = {"Docker-Content-Digest": digest, "Content-Type": "application/octet-stream"}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("range", ""))
        if wanted is None or not self.server.ranges:
            return self._answer(200, content, **headers)
        start, end = int(wanted[1]), min(int(wanted[2] or len(content) - 1), len(content) - 1)
        if start > end:
            return self._refuse(416, "RANGE_INVALID")
        headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
        self._answer(206, content[start : end + 1], **headers)

    def _blobs_uploads(
        self, repo: Repo, name: str, session: str, query: dict[str, str], body: bytes
    ) -> None:
        uploads = self.server.uploads
        if self.command == "POST":
            source, digest = query.get("from"), query.get("mount", "")
            if source and self.server.mounts and digest in self.server.repo(source).blobs:
                if not self._allowed(source, "pull"):
                    return self._challenge(f"repository:{source}:pull")
                repo.blobs[digest] = self.server.repo(source).blobs[digest]
                return self._answer(201, Location=f"/v2/{name}/blobs/{digest}")
            session = secrets.token_hex(8)
            uploads[session] = bytearray()
            least = self.server.chunk_least
            extra = {} if least is None else {"OCI-Chunk-Min-Length": str(least)}
            return self._answer(202, **self._upload(name, session), **extra)
        if session not in uploads:
            return self._refuse(404, "BLOB_UPLOAD_UNKNOWN")
        has = uploads[session]
        if self.command == "GET":
            return self._answer(204, **self._upload(name, session))
        stated = self.headers.get("content-range")
        if stated is not None and stated != f"{len(has)}-{len(has) + len(body) - 1}":
            return self._refuse(416, "BLOB_UPLOAD_INVALID", **self._upload(name, session))
        if self.command == "PATCH" and self.server.chunk_least and len(body) < self.server.chunk_least:
            return self._refuse(416, "SIZE_INVALID")
        has += body
        if self.command == "PATCH":
            return self._answer(202, **self._upload(name, session))
        content, digest = bytes(uploads.pop(session)), query.get("digest", "")
        if f"sha256:{hashlib.sha256(content).hexdigest()}" != digest:
            return self._refuse(400, "DIGEST_INVALID")
        if self._fault is not Fault.LOST_BLOB:
            repo.blobs[digest] = content
        self._answer(201, Location=f"/v2/{name}/blobs/{digest}", **{"Docker-Content-Digest": digest})

    def _upload(self, name: str, session: str) -> dict[str, str]:
        base = f"{self.server.scheme}://{self.server.host}" if self.server.absolute_locations else ""
        last = max(0, len(self.server.uploads[session]) - 1)
        return {
            "Location": f"{base}/v2/{name}/blobs/uploads/{session}?_state=s1gned%2Fstate",
            "Range": f"0-{last}",
        }

    # manifests

    def _manifests(self, repo: Repo, name: str, target: str, query: dict[str, str], body: bytes) -> None:
        if self.command == "PUT":
            return self._put_manifest(repo, name, target, body)
        digest = repo.tags.get(target, target)
        if digest not in repo.manifests:
            return self._refuse(404, "MANIFEST_UNKNOWN")
        if self.command == "DELETE":
            if target != digest:
                return self._refuse(405, "UNSUPPORTED")
            del repo.manifests[digest]
            repo.tags = {tag: points for tag, points in repo.tags.items() if points != digest}
            return self._answer(202)
        media_type, content = repo.manifests[digest]
        self._answer(200, content, **{"Content-Type": media_type, "Docker-Content-Digest": digest})

    def _put_manifest(self, repo: Repo, name: str, target: str, body: bytes) -> None:
        digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
        loaded = json.loads(body)
        needed = [loaded["config"], *loaded["layers"]] if "config" in loaded else []
        if target.startswith("sha256:") and target != digest:
            return self._refuse(400, "DIGEST_INVALID")
        if any(one["digest"] not in repo.blobs for one in needed):
            return self._refuse(404, "MANIFEST_BLOB_UNKNOWN")
        repo.manifests[digest] = (self.headers["content-type"], body)
        if target != digest:
            repo.tags[target] = digest
            if target.startswith("sha256-") and self.server.overwrite_fallback:
                # another client, which had read the index before this one was written
                rival = self.server.overwrite_fallback.pop(0)
                repo.tags[target] = f"sha256:{hashlib.sha256(rival).hexdigest()}"
                repo.manifests[repo.tags[target]] = (INDEX, rival)
        headers = {"Docker-Content-Digest": digest, "Location": f"/v2/{name}/manifests/{digest}"}
        if "subject" in loaded and self.server.says_subject:
            headers["OCI-Subject"] = loaded["subject"]["digest"]
        self._answer(201, **headers)

    def _tags(self, repo: Repo, name: str, rest: str, query: dict[str, str], body: bytes) -> None:
        if rest != "list" or not (repo.blobs or repo.manifests):
            return self._refuse(404, "NAME_UNKNOWN")
        left = [tag for tag in sorted(repo.tags) if tag > query.get("last", "")]
        shown = left[: min(self.server.tags_page, int(query.get("n", 1000)))]
        headers = {"Content-Type": "application/json"}
        if len(shown) < len(left):
            headers["Link"] = f'</v2/{name}/tags/list?last={shown[-1]}>; rel="next"'
        self._answer(200, json.dumps({"name": name, "tags": shown or None}).encode(), **headers)

    def _referrers(self, repo: Repo, name: str, subject: str, query: dict[str, str], body: bytes) -> None:
        if not self.server.referrers_api:
            return self._answer(404, b"404 page not found\n", **{"Content-Type": "text/plain"})
        entries = []
        for digest, (media_type, content) in repo.manifests.items():
            loaded = json.loads(content)
            if loaded.get("subject", {}).get("digest") == subject:
                # as some registries do: the configuration's type in place of the manifest's own
                kind = loaded["config"]["mediaType"]
                entry = {
                    "mediaType": media_type,
                    "digest": digest,
                    "size": len(content),
                    "artifactType": kind,
                }
                entries.append(entry)
        start = int(query.get("n", 0))
        end = start + self.server.referrers_page
        headers = {"Content-Type": INDEX}
        if end < len(entries):
            headers["Link"] = f'</v2/{name}/referrers/{subject}?n={end}>; rel="next"'
        page = {"schemaVersion": 2, "mediaType": INDEX, "manifests": entries[start:end]}
        self._answer(200, json.dumps(page).encode(), **headers)

    # authorization

    def _allowed(self, name: str, action: str) -> bool:
        server = self.server
        if server.auth is None:
            return True
        scheme, _, value = self.headers.get("authorization", "").partition(" ")
        if server.auth == "basic":
            return scheme == "Basic" and self._user(value)
        granted = server.tokens.get(value, []) if scheme == "Bearer" else []
        return any(
            scope.startswith(f"repository:{name}:") and action in scope.rpartition(":")[2].split(",")
            for scope in granted
        )

    def _user(self, encoded: str) -> bool:
        user, _, password = base64.b64decode(encoded).decode().partition(":")
        return self.server.users.get(user) == password != ""

    def _challenge(self, scope: str) -> None:
        if self.server.auth == "basic":
            header = 'Basic realm="registry, \\"x\\""'
            return self._refuse(401, "UNAUTHORIZED", **{"WWW-Authenticate": header})
        realm = self.server.realm or f"{self.server.scheme}://{self.server.host}/token"
        challenge = f'Bearer realm="{realm}",service="test.registry"' + (
            f',scope="{scope}"' if scope else ""
        )
        self._refuse(401, "UNAUTHORIZED", **{"WWW-Authenticate": challenge})

    def _token(self, body: bytes, query: dict[str, str]) -> None:
        server = self.server
        if self.command == "POST":
            form = {name: values[0] for name, values in parse_qs(body.decode()).items()}
            if form.get("refresh_token") not in server.refresh_tokens:
                return self._refuse(401, "UNAUTHORIZED")
            scopes = form["scope"].split()
        else:
            scheme, _, value = self.headers.get("authorization", "").partition(" ")
            if server.users and not (scheme == "Basic" and self._user(value)):
                return self._refuse(401, "UNAUTHORIZED")
            scopes = parse_qs(urlsplit(self.path).query).get("scope", [])
        token = f"t0ken-{secrets.token_hex(8)}"
        server.tokens[token] = scopes
        content = json.dumps({"token": token, "expires_in": server.token_life}).encode()
        self._answer(200, content, **{"Content-Type": "application/json"})

    # answers

    def _refuse(self, status: int, code: str, /, **headers: str) -> None:
        echoed = self.headers.get("authorization", "") if self.server.echo_authorization else ""
        content = json.dumps({"errors": [{"code": code, "message": f"no {echoed}"}]}).encode()
        self._answer(status, content, **{"Content-Type": "application/json", **headers})

    def _record(self, status: int) -> None:
        """Once a request, and before its answer: a client that has one finds its request here."""
        if not self._recorded:
            self._recorded = True
            authorization = self.headers.get("authorization")
            with self.server.lock:
                self.server.seen.append(Seen(self.command, self.path, authorization, self._taken, status))

    def _answer(self, status: int, content: bytes = b"", /, **headers: str) -> None:
        fault = self._fault
        if fault is Fault.CUT_AFTER:
            raise Cut
        self._record(status)
        if content and fault is Fault.WRONG_BYTES:
            content = content[:-1] + bytes([content[-1] ^ 1])
        if content and fault is Fault.TRUNCATED:
            content = content[: len(content) // 2]
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "HEAD" or status == 204:
            return
        if fault is Fault.CUT_IN_ANSWER:
            self.wfile.write(content[: len(content) // 2])
            raise Cut
        if fault is Fault.TRICKLE:
            for at in range(len(content)):
                self.wfile.write(content[at : at + 1])
                threading.Event().wait(0.02)
            return
        self.wfile.write(content)
