"""`make run`: the whole loop on this machine alone, from a recipe to a published and booted image.

Beside OUTPUT: `trust` (an embedded trust), `registry` (Debian's docker-registry on loopback), `platform`
(the embedded platform) and `run.json`, what the next run needs to go on with the same ones. Safe to
run again.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import anyio
from pydantic import BaseModel, ConfigDict

from pipelines.errors import DiskImageError
from pipelines.recipe import load_recipe
from platform_client.actions import Actions, Publication, open_actions
from supply_chain.trust import load_trust
from supply_chain.verify.policy import Signer

ROOT = Path(__file__).parents[1]
REGISTRY = ROOT / ".tools/debian/docker-registry/usr/bin/docker-registry"
# Seconds for a server to answer, and for the platform to verify an image.
START, VERIFY = 30, 300


class Site(BaseModel):
    """What stays between runs: ports, since references name them, and secrets that were shown once."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    registry_port: int
    platform_port: int
    admin_token: str
    webhooks: dict[str, tuple[str, str]] = {}


def main(recipe: Path, output: Path) -> None:
    """Build, sign, push, verify, publish, boot."""
    slug = load_recipe(recipe).platform_slug
    folder = output.absolute().parent
    trust = folder / "trust"
    step(1, f"build {recipe}")
    disk_image("build", recipe, "--relock", "--output", output)
    if not trust.exists():
        disk_image("trust", "init", trust, "--json", stdout=subprocess.DEVNULL)
    signer = signer_of(trust)
    site = load_site(folder)
    with ExitStack() as stack:
        registry = f"127.0.0.1:{site.registry_port}"
        stack.enter_context(serving(registry_command(folder, registry), f"http://{registry}/v2/", folder))
        platform = f"http://127.0.0.1:{site.platform_port}"
        serve = ["serve", "--port", str(site.platform_port), "--trust", os.fspath(trust), "--plain-http"]
        trusted = ["--trusted-registry", registry, "--private-registry", registry]
        command = [*words("platform"), *serve, *trusted, "--state", os.fspath(folder / "platform")]
        stack.enter_context(serving(command, f"{platform}/healthz", folder))
        site = anyio.run(provisioned, site, folder, platform, slug, signer)
        ref = f"{registry}/disk-images/{slug}:latest"
        step(2, f"sign, push to docker-registry at {registry}, tell the platform at {platform}")
        url, secret = site.webhooks[slug]
        told = {"POWERNODE_DISK_IMAGE_WEBHOOK_URL": url, "POWERNODE_DISK_IMAGE_WEBHOOK_SECRET": secret}
        disk_image(
            "publish",
            output,
            ref,
            "--trust",
            trust,
            "--platform-slug",
            slug,
            "--plain-http",
            environment=told,
        )
        step(3, "verify what the registry has")
        who = ["--identity", signer.identity, "--issuer", signer.issuer]
        disk_image("verify", ref, "--trust", trust, *who, "--plain-http")
        step(4, "what the platform made of it")
        publication = anyio.run(outcome, site, platform, slug)
        print(f"publication  {publication.id}\nstatus       {publication.status}")
        print(
            f"image        {publication.oci_ref}\ndefault      {'yes' if publication.is_default else 'no'}"
        )
    step(5, "boot")
    disk_image("boot", output)


def step(number: int, what: str) -> None:
    """A heading."""
    print(f"\n{number} {what}", flush=True)


def words(verb: str) -> list[str]:
    """The command's first words."""
    return [os.fspath(ROOT / ".venv/bin/disk-image"), verb]


def disk_image(
    verb: str, *arguments: str | Path, environment: dict[str, str] | None = None, stdout: int | None = None
) -> None:
    """Run the command; its failure ends this run, and it has said why."""
    command = [*words(verb), *(os.fspath(each) for each in arguments)]
    done = subprocess.run(command, env={**os.environ, **(environment or {})}, stdout=stdout)
    if done.returncode != 0:
        raise SystemExit(done.returncode)


def signer_of(trust: Path) -> Signer:
    """As whom the embedded trust signs, and who vouches for it there."""
    embedded = load_trust(trust).embedded
    if embedded is None:
        raise DiskImageError(f"{trust} is no embedded trust", "move it away, and run it again")
    return Signer(embedded.default_identity, embedded.issuer)


def load_site(folder: Path) -> Site:
    """The site of an earlier run, or a new one: a platform and two ports that are free now."""
    file = folder / "run.json"
    if file.exists():
        return Site.model_validate_json(file.read_bytes())
    command = [*words("platform"), "init", "--state", os.fspath(folder / "platform"), "--json"]
    made = subprocess.run(command, stdout=subprocess.PIPE, check=False)
    if made.returncode != 0:
        raise SystemExit(made.returncode)
    ports = []
    with ExitStack() as stack:
        for _ in range(2):
            probe = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            ports.append(probe.getsockname()[1])
    token = json.loads(made.stdout)["admin_token"]
    site = Site(registry_port=ports[0], platform_port=ports[1], admin_token=token)
    save_site(folder, site)
    return site


def save_site(folder: Path, site: Site) -> None:
    """Only for this user: it has secrets."""
    new = folder / "run.json.new"
    with open(new, "w", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
        file.write(site.model_dump_json(indent=2))
    new.replace(folder / "run.json")


def registry_command(folder: Path, address: str) -> list[str]:
    """The registry on loopback, its storage in `registry`."""
    (folder / "registry").mkdir(exist_ok=True)
    config = {
        "version": "0.1",
        "log": {"level": "error", "accesslog": {"disabled": True}},
        "storage": {
            "filesystem": {"rootdirectory": os.fspath(folder / "registry/storage")},
            "delete": {"enabled": True},
        },
        "http": {"addr": address},
    }
    # YAML takes JSON
    (folder / "registry/config.yml").write_text(json.dumps(config))
    return [os.fspath(REGISTRY), "serve", os.fspath(folder / "registry/config.yml")]


@contextmanager
def serving(command: list[str], answers: str, folder: Path) -> Iterator[None]:
    """Run a server until the block ends; its log goes to a file beside the output."""
    log = folder / f"{Path(command[0]).name}.log"
    with log.open("wb") as stream, subprocess.Popen(command, stdout=stream, stderr=stream) as process:
        try:
            wait(process, answers, log)
            yield
        finally:
            process.terminate()


def wait(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    """Wait until a server answers."""
    deadline = time.monotonic() + START
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(URLError, ConnectionError), urlopen(url, timeout=2):
            return
        time.sleep(0.1)
    last = log.read_text(errors="replace").strip()[-500:]
    raise DiskImageError(f"{log.stem} did not start: {last}", f"see {log}")


async def provisioned(site: Site, folder: Path, url: str, slug: str, signer: Signer) -> Site:
    """The site with a node platform for these images, and a webhook to report them by."""
    if slug in site.webhooks:
        return site
    async with open_actions(url, site.admin_token) as actions:
        policy = {
            "cosign_identity_regexp": re.escape(signer.identity),
            "cosign_issuer_regexp": re.escape(signer.issuer),
        }
        await actions.create_node_platform(slug, **policy)
        webhook = await actions.create_webhook(slug)
    pair = (webhook.webhook_url, webhook.webhook_secret)
    site = site.model_copy(update={"webhooks": {**site.webhooks, slug: pair}})
    save_site(folder, site)
    return site


async def outcome(site: Site, url: str, slug: str) -> Publication:
    """The newest publication, once the platform has verified it."""
    async with open_actions(url, site.admin_token) as actions:
        for _ in range(VERIFY):
            newest = await newest_publication(actions, slug)
            if newest.status not in ("queued", "verifying"):
                break
            await anyio.sleep(1)
    if newest.status != "published":
        raise DiskImageError(
            f"the platform says {newest.status}: {newest.error_message}", "mend that, and run it again"
        )
    return newest


async def newest_publication(actions: Actions, slug: str) -> Publication:
    """The newest publication for the node platform `slug`."""
    (platform,) = [each for each in await actions.node_platforms() if each.name == slug]
    return (await actions.publications(platform.id))[0]


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), Path(sys.argv[2]))
    except DiskImageError as error:
        sys.exit(f"error: {error.what}\n  to do: {error.hint}")
