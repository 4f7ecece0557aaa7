"""One recipe becomes a signed, published, bootable OS image, digest for digest.

Every function runs the same plan with the same stage programs as the disk-image command, on this engine.
"""

import json
import sys
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from tempfile import mkdtemp
from typing import Annotated

import dagger
from dagger import Doc, check, dag, field, function, object_type

from pipelines.build_record import Run, definition, write_build_record
from pipelines.checkout import git_sha as commit_of
from pipelines.commands.request import TOOLS_LOCK, Request, load_tools_lock, with_locks
from pipelines.dagger_containers import Given, pool_files, recipe_paths, unpack
from pipelines.dagger_engine import BASE, VERSION, DaggerEngine
from pipelines.dagger_executor import Build
from pipelines.definition import Json, Plan
from pipelines.errors import DiskImageError
from pipelines.module_parts import RecipeFolder, told, uncached
from pipelines.module_publishing import Image, Publishing
from pipelines.progress import Plain
from pipelines.sources import PROJECT, Sources
from pipelines.store import Store


@dataclass(frozen=True, slots=True)
class _Started:
    """A recipe read into the module's container, and its build."""

    request: Request
    build: Build


@object_type
class DiskImage(Publishing):
    """Builds, boots, explains, signs and publishes OS images."""

    base: Annotated[
        str, Doc("Bootstrap image: python3 ≥ 3.11 and tar. Another one gives the same bytes")
    ] = field(default=BASE)
    pool: Annotated[
        dagger.Directory | None, Doc("A folder of locked .deb files, to build without the internet")
    ] = field(default=None)
    archive: Annotated[
        list[str] | None, Doc("Debian archives' roots; else the apt sources of the module's image")
    ] = field(default=None)

    @uncached
    async def lock(
        self,
        recipe: RecipeFolder,
        update: Annotated[list[str] | None, Doc("Let only these packages move")] = None,
    ) -> dagger.Directory:
        """Resolve a recipe's packages: lock.json and its evidence, for the recipe's folder."""
        from pipelines.commands.lock import run

        with told():
            folder = await _local(recipe)
            asked = {"tools": False, "check": False, "update": update, "accept_expired": None, "json": False}
            run(Namespace(recipe=folder, archive=self.archive, **asked))
        written = dag.directory()
        for name in ("lock.json", "lock.evidence.json"):
            written = written.with_new_file(name, (folder / name).read_text())
        return written

    @function
    async def plan(self, recipe: RecipeFolder) -> str:
        """The recipe's stages as JSON data, in the order in which they can run."""
        with told():
            request = await self._request(recipe)
        return json.dumps([stage.to_json() for stage in request.plan.stages], indent=2, sort_keys=True)

    @function
    async def mirror(
        self,
        recipe: RecipeFolder,
        set: Annotated[str, Doc("root, kernel, initramfs, or tools-<set>")] = "root",
    ) -> dagger.Directory:
        """The locked files of a set as a local repository."""
        return await self._folder(recipe, f"mirror-{set}", "repository")

    @function
    async def tools(
        self, recipe: RecipeFolder, set: Annotated[str, Doc("packages, image or kernel")] = "image"
    ) -> dagger.File:
        """The tree in which stages run, as a canonical tar."""
        return await self._file(recipe, f"tools-{set}", "tree")

    @function
    async def kernel(self, recipe: RecipeFolder) -> dagger.Directory:
        """vmlinuz, config, release and the modules' canonical tar."""
        return await self._outputs(recipe, "kernel")

    @function
    async def rootfs(self, recipe: RecipeFolder) -> dagger.File:
        """The root file system as a canonical tar."""
        return await self._file(recipe, "rootfs", "tree")

    @function
    async def composefs(self, recipe: RecipeFolder) -> dagger.Directory:
        """The composefs metadata image, its fs-verity digest, its dump, and the list of its objects."""
        return await self._outputs(recipe, "composefs")

    @function
    async def initramfs(self, recipe: RecipeFolder) -> dagger.File:
        """The initramfs: one zstd frame of a newc archive."""
        return await self._file(recipe, "initramfs", "initramfs")

    @function
    async def build(self, recipe: RecipeFolder) -> dagger.Directory:
        """The image as an OCI layout; its manifest digest is the same from every way to build it."""
        return await self._folder(recipe, "image", "layout")

    @function
    async def digest(self, recipe: RecipeFolder) -> str:
        """Build, and give the image's manifest digest: sha256:<hex>."""
        layout = await self._folder(recipe, "image", "layout")
        index = json.loads(await layout.file("index.json").contents())
        manifest: str = index["manifests"][0]["digest"]
        return manifest

    @function
    async def sbom(self, recipe: RecipeFolder) -> dagger.File:
        """The image's SBOM, SPDX 2.3 JSON; the same bytes from every way to build it."""
        return await self._file(recipe, "sbom", "document")

    @uncached
    async def boot(
        self, layout: Annotated[dagger.Directory, Doc("An image's OCI layout, as build gives it")]
    ) -> str:
        """Boot an image in QEMU, always anew; gives the digest that the guest's kernel verified."""
        return await self._boot(layout)

    @uncached
    async def explain(self, recipe: RecipeFolder) -> str:
        """Say for each stage why it would run here, naming the input that changed; runs no stage."""
        with told():
            found = await (await self._started(recipe)).build.explain()
        width = max(len(one.stage) for one in found)
        return "".join(f"{one.stage:<{width}}  {one.result:<6}  {'; '.join(one.why)}\n" for one in found)

    @uncached
    async def shell(
        self, recipe: RecipeFolder, stage: Annotated[str, Doc("The stage's name in the plan")] = "rootfs"
    ) -> dagger.Container:
        """The container of a stage with its inputs in /stage/in, before its program runs: add `terminal`."""
        with told():
            started = await self._started(recipe)
            names = [one.name for one in started.request.plan.stages]
            if stage not in names:
                raise DiskImageError(f"no stage {stage!r} in the plan", f"one of: {', '.join(names)}")
            asked = await started.build.container_of(stage)
            container = await self._engine().container(asked)
        command = " ".join(asked.command)
        return container.with_default_terminal_cmd(
            ["/bin/sh", "-c", f"echo 'the program: {command}'; cd /stage; exec /bin/sh"]
        )

    @function
    @check
    async def recipes(self) -> str:
        """Check that every recipe of the project reads and plans under its lock."""
        said = []
        with told():
            for folder in sorted(path.parent for path in (PROJECT / "recipes").glob("*/recipe.toml")):
                request = with_locks(folder, folder / "lock.json", TOOLS_LOCK, _store())
                said.append(f"{folder.name}: {len(request.plan.stages)} stages\n")
        return "".join(said)

    @function
    @check
    async def quick(self) -> str:
        """Check that the quick recipe builds and that its root is verified when it boots."""
        recipe = dag.current_module().source().directory("recipes/quick")
        return await self._boot(await self._folder(recipe, "image", "layout"))

    async def _image(self, recipe: dagger.Directory, git_sha: str | None) -> Image:
        began = datetime.now(UTC)
        started = await self._started(recipe)
        request, build = started.request, started.build
        commit = commit_of(git_sha, request.folder, request.files(), request.programs())
        await build.run(("image", "sbom"))
        executed = await self._engine().execute(unpack(await build.bring("image", "layout")))
        layout, sbom = executed.folder("folder"), await build.bring("sbom", "document")
        assert isinstance(layout, dagger.Directory)
        assert isinstance(sbom, dagger.File)
        digest = f"sha256:{build.output('image', 'manifest').content.digest}"
        record = _record(digest, definition(request, commit), Run(f"dagger {VERSION}", began, self.base))
        return Image(layout, sbom, dag.file("build.json", record))

    async def _boot(self, layout: dagger.Directory) -> str:
        from pipelines.plan import boot_plan
        from pipelines.recipe import host_arch

        with told():
            plan = boot_plan(load_tools_lock(TOOLS_LOCK, host_arch()), host_arch())
            given = replace(self._given(plan), externals={"layout": layout})
            build = self._build(plan, Sources(), given, anew=("boot",))
            await build.run(("boot",))
            file = await build.bring("boot", "verdict")
        assert isinstance(file, dagger.File)
        verdict = json.loads(await file.contents())
        return (
            f"disk-image: root verified sha256:{verdict['composefs_digest']}\n"
            f"booted            {verdict['seconds']} s from QEMU's start to multi-user\n"
        )

    async def _request(self, recipe: dagger.Directory) -> Request:
        folder = await _local(recipe)
        return with_locks(folder, folder / "lock.json", TOOLS_LOCK, _store())

    async def _started(self, recipe: dagger.Directory) -> _Started:
        request = await self._request(recipe)
        files = {path: recipe.file(path) for path in recipe_paths(request.plan)}
        given = replace(self._given(request.plan), recipe_files=files)
        return _Started(request, self._build(request.plan, request.sources, given))

    def _given(self, plan: Plan) -> Given:
        from pipelines.archive import archives

        return Given(
            pools=() if self.pool is None else (self.pool.filter(include=pool_files(plan)),),
            # with a pool, no archive at all is fine
            archives=archives(self.archive or ()) if self.archive or self.pool is None else (),
        )

    def _build(self, plan: Plan, sources: Sources, given: Given, anew: tuple[str, ...] = ()) -> Build:
        logs = Path(mkdtemp(prefix="logs-"))
        return Build(plan, sources, self._engine(), given, Plain(sys.stderr), logs, anew=anew)

    def _engine(self) -> DaggerEngine:
        return DaggerEngine(
            self.base, lambda paths: dag.current_module().source().filter(include=list(paths))
        )

    async def _ran(self, recipe: dagger.Directory, stage: str) -> Build:
        started = await self._started(recipe)
        names = [one.name for one in started.request.plan.stages]
        if stage not in names:
            raise DiskImageError(f"no stage {stage!r} in the plan", f"one of: {', '.join(names)}")
        await started.build.run((stage,))
        return started.build

    async def _file(self, recipe: dagger.Directory, stage: str, output: str) -> dagger.File:
        with told():
            file = await (await self._ran(recipe, stage)).bring(stage, output)
        assert isinstance(file, dagger.File)
        return file

    async def _folder(self, recipe: dagger.Directory, stage: str, output: str) -> dagger.Directory:
        with told():
            build = await self._ran(recipe, stage)
            executed = await self._engine().execute(unpack(await build.bring(stage, output)))
        folder = executed.folder("folder")
        assert isinstance(folder, dagger.Directory)
        return folder

    async def _outputs(self, recipe: dagger.Directory, stage: str) -> dagger.Directory:
        folder = dag.directory()
        with told():
            build = await self._ran(recipe, stage)
            for output in build.outputs(stage):
                file = await build.bring(stage, output)
                assert isinstance(file, dagger.File)
                folder = folder.with_file(output, file)
        return folder


def _record(image: str, built: Mapping[str, Json], run: Run) -> str:
    place = Path(mkdtemp(prefix="record-"), "build.json")
    write_build_record(place, image, built, run)
    return place.read_text()


async def _local(recipe: dagger.Directory) -> Path:
    """The recipe's folder as files of the module's own container."""
    folder = Path(mkdtemp(prefix="recipe-"))
    await recipe.export(str(folder))
    return folder


def _store() -> Store:
    return Store(Path(mkdtemp(prefix="store-")))
