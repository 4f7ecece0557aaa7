"""The Dagger module's functions after the build: sign, push, publish, verify.

Secrets come as dagger.Secret. They stay in this process's memory: in no file, argument or environment of a
container, and no result of these functions is kept by the engine. What identity tokens are minted from is
read when the build is done, because such a token lasts minutes.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING, Annotated, TypeAlias

import dagger
from dagger import Doc

from pipelines.dagger_tunnel import reachable
from pipelines.errors import UsageError
from pipelines.module_parts import told, uncached
from supply_chain.beside import build_record_path, sbom_path

if TYPE_CHECKING:
    from supply_chain.publish.publish import Registry, Telling
    from supply_chain.trust import Trust

Recipe: TypeAlias = Annotated[dagger.Directory | None, Doc("The recipe's folder: build it first")]
Layout: TypeAlias = Annotated[
    dagger.Directory | None, Doc("In place of a recipe: an OCI layout that was built before")
]
Sbom: TypeAlias = Annotated[dagger.File | None, Doc("With a layout: its LAYOUT.sbom.json")]
Record: TypeAlias = Annotated[dagger.File | None, Doc("With a layout: its LAYOUT.build.json")]
GitSha: TypeAlias = Annotated[str | None, Doc("With a recipe: the commit that is built")]
TrustFile: TypeAlias = Annotated[dagger.File, Doc("Whom to believe and where to sign: a trust.json")]
Token: TypeAlias = Annotated[
    dagger.Secret | None,
    Doc("Who signs: an identity token. A forge's job gives its request's URL and token in its place"),
]
RequestUrl: TypeAlias = Annotated[dagger.Secret | None, Doc("env://ACTIONS_ID_TOKEN_REQUEST_URL")]
RequestToken: TypeAlias = Annotated[dagger.Secret | None, Doc("env://ACTIONS_ID_TOKEN_REQUEST_TOKEN")]
Ref: TypeAlias = Annotated[str, Doc("host/path:tag, or host/path@sha256:…")]
Username: TypeAlias = Annotated[str, Doc("The registry's user")]
Password: TypeAlias = Annotated[dagger.Secret | None, Doc("The user's password or token at the registry")]
PlainHttp: TypeAlias = Annotated[bool, Doc("For a registry among --local alone")]
CaFile: TypeAlias = Annotated[dagger.File | None, Doc("PEM: trust this authority besides the system's")]
MountFrom: TypeAlias = Annotated[list[str] | None, Doc("Repositories that may have blobs already")]
Local: TypeAlias = Annotated[
    list[dagger.Service] | None,
    Doc("Services on your machine's loopback, to be reached at the same address: tcp://127.0.0.1:PORT"),
]


@dataclass(frozen=True, slots=True)
class Image:
    """An OCI layout and what belongs to it: SBOM and build record, where they are known."""

    layout: dagger.Directory
    sbom: dagger.File | None = None
    record: dagger.File | None = None


class Publishing(ABC):
    """Signing and publishing what the module builds."""

    @abstractmethod
    async def _image(self, recipe: dagger.Directory, git_sha: str | None) -> Image:
        """Build. Raises DiskImageError."""

    @uncached
    async def sign(
        self,
        trust: TrustFile,
        recipe: Recipe = None,
        layout: Layout = None,
        sbom: Sbom = None,
        build_record: Record = None,
        git_sha: GitSha = None,
        identity_token: Token = None,
        request_url: RequestUrl = None,
        request_token: RequestToken = None,
        local: Local = None,
    ) -> dagger.Directory:
        """Sign an image: its layout, with signature, SBOM and provenance in it."""
        from supply_chain.signing.sign import sign_layout

        token = _Token(identity_token, request_url, request_token)
        with told():
            token.check()
            trusted = await _trust(trust)
            image = await self._chosen(recipe, layout, sbom, build_record, git_sha)
            folder = await _brought(image)
            async with reachable(local or ()):
                await sign_layout(folder, trusted, await token.environment())
        return _written(image.layout, folder)

    @uncached
    async def push(
        self,
        layout: Annotated[dagger.Directory, Doc("An OCI layout, as build or sign gives it")],
        ref: Ref,
        username: Username = "",
        password: Password = None,
        mount_from: MountFrom = None,
        plain_http: PlainHttp = False,
        ca_file: CaFile = None,
        local: Local = None,
    ) -> str:
        """Push an image and what hangs on it; only what is missing travels."""
        from supply_chain.push import PushResult, push

        with told():
            registry = await _registry(ref, username, password, plain_http, ca_file, mount_from)
            folder = await _brought(Image(layout))
            async with reachable(local or ()):
                done = await push(
                    folder,
                    ref,
                    plain_http=plain_http,
                    ca_file=registry.ca_file,
                    mount_from=registry.mount_from,
                    credentials=registry.credentials,
                )
        assert isinstance(done, PushResult)
        return f"{done.reference} is {done.digest}\nsent {done.blob_bytes_sent} bytes of blobs\n"

    @uncached
    async def publish(
        self,
        ref: Ref,
        trust: TrustFile,
        recipe: Recipe = None,
        layout: Layout = None,
        sbom: Sbom = None,
        build_record: Record = None,
        git_sha: GitSha = None,
        identity_token: Token = None,
        request_url: RequestUrl = None,
        request_token: RequestToken = None,
        username: Username = "",
        password: Password = None,
        mount_from: MountFrom = None,
        plain_http: PlainHttp = False,
        ca_file: CaFile = None,
        platform_slug: Annotated[str | None, Doc("The platform to tell of the image")] = None,
        webhook_url: Annotated[dagger.Secret | None, Doc("With a platform: its webhook")] = None,
        webhook_secret: Annotated[dagger.Secret | None, Doc("With a platform: the webhook's secret")] = None,
        local: Local = None,
    ) -> str:
        """Sign and push an image, and tell a platform of it."""
        from supply_chain.publish.publish import Signing, publish
        from supply_chain.reference import parse_reference

        said: list[str] = []
        token = _Token(identity_token, request_url, request_token)
        with told():
            reference = parse_reference(ref)
            token.check()
            trusted = await _trust(trust)
            registry = await _registry(ref, username, password, plain_http, ca_file, mount_from)
            telling = await _telling(platform_slug, webhook_url, webhook_secret, git_sha, registry)
            image = await self._chosen(recipe, layout, sbom, build_record, git_sha)
            folder = await _brought(image)
            async with reachable(local or ()):
                signing = Signing(trusted, await token.environment())
                done = await publish(folder, reference, signing, registry, telling, report=said.append)
        return "\n".join((*said, f"{done.pushed.reference} is {done.pushed.digest}", ""))

    @uncached
    async def verify(
        self,
        trust: Annotated[dagger.File, Doc("Whom to believe: a trust.json or a trusted_root.json")],
        layout: Annotated[dagger.Directory | None, Doc("An OCI layout")] = None,
        ref: Annotated[str | None, Doc("In place of a layout: host/path:tag, or host/path@sha256:…")] = None,
        identity: Annotated[str | None, Doc("The signer, exactly")] = None,
        identity_regexp: Annotated[str | None, Doc("The signer, matched as a whole")] = None,
        issuer: Annotated[str | None, Doc("Who vouches for the signer, exactly")] = None,
        issuer_regexp: Annotated[str | None, Doc("Who vouches, matched as a whole")] = None,
        # the CLI has a --lock of its own
        recipe_lock: Annotated[dagger.File | None, Doc("Require that it was built from this lock")] = None,
        username: Username = "",
        password: Password = None,
        plain_http: PlainHttp = False,
        ca_file: CaFile = None,
        local: Local = None,
    ) -> str:
        """Verify signature, SBOM and provenance, and that they say what is there; a line for each step."""
        from supply_chain.verify.image import verify_image
        from supply_chain.verify.policy import signer_policy
        from supply_chain.verify.source import open_source

        lines: list[str] = []

        with told():
            policy = signer_policy(
                identity=identity,
                identity_regexp=identity_regexp,
                issuer=issuer,
                issuer_regexp=issuer_regexp,
            )
            if (layout is None) == (ref is None):
                raise UsageError("expected --layout or --ref, found both or none", "give one of them")
            trusted = await _trust(trust)
            locked = None if recipe_lock is None else (await recipe_lock.contents()).encode()
            registry = await _registry(ref, username, password, plain_http, ca_file)
            where = ref if layout is None else str(await _brought(Image(layout)))
            assert where is not None
            async with (
                reachable(local or ()),
                open_source(
                    where,
                    plain_http=plain_http,
                    ca_file=registry.ca_file,
                    credentials=registry.credentials,
                ) as source,
            ):
                verified = await verify_image(
                    source, trusted, policy, lock=locked, on_step=lambda done: lines.append(done.line)
                )
        return "\n".join((*lines, f"{ref or 'the layout'} is {verified.digest}", ""))

    async def _chosen(
        self, recipe: Recipe, layout: Layout, sbom: Sbom, build_record: Record, git_sha: GitSha
    ) -> Image:
        """The image of a recipe, or the one handed in."""
        if (recipe is None) == (layout is None):
            raise UsageError("expected --recipe or --layout, found both or none", "give one of them")
        if recipe is not None:
            return await self._image(recipe, git_sha)
        assert layout is not None
        if sbom is None or build_record is None:
            raise UsageError(
                "--layout: its SBOM and its build record are missing",
                "give both as well: --sbom LAYOUT.sbom.json --build-record LAYOUT.build.json",
            )
        return Image(layout, sbom, build_record)


@dataclass(frozen=True, slots=True)
class _Token:
    """Where the identity token comes from: itself, or a forge's two request secrets."""

    given: dagger.Secret | None
    request_url: dagger.Secret | None
    request_token: dagger.Secret | None

    def check(self) -> None:
        """Raise UsageError when there is none, before anything is built."""
        if not (self.given or self.request_url or self.request_token):
            raise UsageError(
                "no identity token: no source of one was given",
                "in a forge's job: --request-url env://ACTIONS_ID_TOKEN_REQUEST_URL "
                "--request-token env://ACTIONS_ID_TOKEN_REQUEST_TOKEN; elsewhere --identity-token",
            )

    async def environment(self) -> dict[str, str]:
        """The variables that `sign_layout` takes a token from. The engine asks for each secret only now."""
        from supply_chain.signing.token_sources import GIVEN, REQUEST_TOKEN, REQUEST_URL

        given = {GIVEN: self.given, REQUEST_URL: self.request_url, REQUEST_TOKEN: self.request_token}
        return {name: await secret.plaintext() for name, secret in given.items() if secret is not None}


async def _brought(image: Image) -> Path:
    """The image's layout in this container, the rest beside it as `disk-image build` writes it."""
    folder = Path(mkdtemp(prefix="image-"), "layout")
    await image.layout.export(str(folder))
    for file, path in ((image.sbom, sbom_path(folder)), (image.record, build_record_path(folder))):
        if file is not None:
            await file.export(str(path))
    return folder


def _written(layout: dagger.Directory, folder: Path) -> dagger.Directory:
    """The layout with what signing wrote into its copy: the index, and blobs that it names, all JSON."""
    from supply_chain.layout import open_layout
    from supply_chain.oci import DOCUMENT_LIMIT, parse_manifest

    signed = open_layout(folder)
    written = {"index.json"}
    for entry in signed.index.manifests[1:]:
        manifest = parse_manifest(signed.read(entry, limit=DOCUMENT_LIMIT), entry.digest)
        written |= {f"blobs/sha256/{blob.hex}" for blob in (entry, *manifest.blobs)}
    for name in sorted(written):
        layout = layout.with_new_file(name, (folder / name).read_text())
    return layout


async def _trust(file: dagger.File) -> "Trust":
    """The trust in a file. Its private half, where it has one, stays on the machine that made it."""
    from supply_chain.trust import load_trust

    place = Path(mkdtemp(prefix="trust-"), "trust.json")
    await file.export(str(place))
    return load_trust(place)


async def _registry(
    ref: str | None,
    username: str,
    password: Password,
    plain_http: bool,
    ca_file: CaFile,
    mount_from: Sequence[str] | None = None,
) -> "Registry":
    """How to speak to the registry of `ref`: as `username`, else anonymously."""
    from supply_chain.publish.publish import Registry
    from supply_chain.reference import parse_reference
    from supply_chain.registry import Credential, GivenCredentials

    known: dict[str, Credential] = {}
    if ref is not None and password is not None:
        secret = (await password.plaintext()).rstrip("\r\n")
        known[parse_reference(ref).registry] = Credential(username, secret)
    authority = None
    if ca_file is not None:
        authority = Path(mkdtemp(prefix="authority-"), "ca.pem")
        await ca_file.export(str(authority))
    return Registry(plain_http, authority, tuple(mount_from or ()), GivenCredentials(known))


async def _telling(
    platform_slug: str | None,
    url: dagger.Secret | None,
    secret: dagger.Secret | None,
    git_sha: str | None,
    registry: "Registry",
) -> "Telling | None":
    """Whom to tell."""
    from platform_client.settings import WEBHOOK_SECRETS, WEBHOOK_URLS, webhook_settings
    from supply_chain.publish.publish import Telling

    if platform_slug is None:
        return None
    given = {WEBHOOK_URLS[0]: url, WEBHOOK_SECRETS[0]: secret}
    environment = {name: await one.plaintext() for name, one in given.items() if one is not None}
    return Telling(webhook_settings(environment), platform_slug, git_sha, registry.ca_file)
