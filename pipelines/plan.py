"""plan(): a recipe and its locks become stage definitions. Pure: no I/O, no clock, no host.

Adding a stage is one folder under stages/ and one entry here. Sets and stages, in the order they run:

    mirror-tools-<set> → tools-<set>          one tree per tools set: packages, image, kernel, boot
    mirror-root → packages → rootfs           the root as one canonical tar
    mirror-kernel → kernel                    vmlinuz, modules, release
    mirror-initramfs → initramfs
    rootfs → composefs → image                the OCI layout
    image → sbom                              what is in it and what it was made with, as SPDX
    image → boot                              QEMU's verdict
"""

from __future__ import annotations

from pipelines.definition import (
    External,
    Input,
    Json,
    Output,
    OutputKind,
    Plan,
    Program,
    RecipeFile,
    Stage,
    StageOutput,
)
from pipelines.lock import Lock, LockedFile
from pipelines.recipe import Recipe, SourceKernel

_SHARED = "stages/shared/"
_JOB = ("stages/__init__.py", _SHARED + "__init__.py", _SHARED + "job.py")
_TAR = ("canonical_tar", "tar_header")
# Tools are not part of any recipe, so their trees carry one fixed time.
TOOLS_EPOCH = 1

FRAGMENT, PATCH, FILE = "fragment", "patch", "file"


def numbered(prefix: str, index: int) -> str:
    """The input's name for the index-th file of a recipe's list: `patch-0003`. Programs sort by it."""
    return f"{prefix}-{index:04d}"


def tool_sets(recipe: Recipe) -> tuple[str, ...]:
    """The sets of tools that building `recipe` runs."""
    return ("packages", "image", *(("kernel",) if isinstance(recipe.kernel, SourceKernel) else ()))


def plan(recipe: Recipe, lock: Lock, tools: Lock) -> Plan:
    """The full build of `recipe`; `image.layout` is the image, `sbom.document` its SBOM."""
    epoch = recipe.source_date_epoch
    stages = [
        *(stage for name in tool_sets(recipe) for stage in _tools(name, tools)),
        _mirror("mirror-root", lock.of_set("root")),
        _mirror("mirror-kernel", lock.of_set("kernel")),
        _mirror("mirror-initramfs", lock.of_set("initramfs")),
        _kernel(recipe),
        _packages(recipe, lock),
        _rootfs(recipe),
        Stage(
            name="composefs",
            program=_program("composefs", *_TAR, "fsverity", "dpkg_files"),
            source_date_epoch=epoch,
            tools=StageOutput("tools-image", "tree"),
            inputs={"tree": StageOutput("rootfs", "tree")},
            outputs=(Output("metadata"), Output("digest"), Output("dump"), Output("objects")),
        ),
        _initramfs(recipe),
        _image(recipe),
        _sbom(recipe, lock, tools),
    ]
    return Plan(recipe.platform_slug, tuple(stages))


def boot_plan(tools: Lock, arch: str) -> Plan:
    """Boot an image layout handed in as the external input `layout`."""
    return Plan(
        "boot",
        (
            *_tools("boot", tools),
            Stage(
                name="boot",
                program=_program("boot", "fsverity", "packs"),
                source_date_epoch=TOOLS_EPOCH,
                tools=StageOutput("tools-boot", "tree"),
                inputs={"layout": External("layout")},
                params={"arch": arch, "memory_mib": 1024, "timeout_seconds": 300},
                outputs=(Output("verdict"), Output("console")),
            ),
        ),
    )


def _program(folder: str, *shared: str, also: tuple[str, ...] = ()) -> Program:
    return Program(
        f"stages.{folder}", (*_JOB, f"stages/{folder}", *(f"{_SHARED}{name}.py" for name in shared), *also)
    )


def _mirror(name: str, files: tuple[LockedFile, ...]) -> Stage:
    # `sets` stay out: a file that another set starts to use as well is still the same file.
    wanted: list[Json] = [file.model_dump(exclude={"sets"}) for file in files]
    return Stage(
        name=name,
        program=_program("mirror", "deb"),
        source_date_epoch=TOOLS_EPOCH,
        params={"files": wanted},
        outputs=(Output("repository", OutputKind.FILES),),
        network=True,
    )


def _tools(name: str, tools: Lock) -> tuple[Stage, Stage]:
    mirror = _mirror(f"mirror-tools-{name}", tools.of_set(name))
    unpack = Stage(
        name=f"tools-{name}",
        program=_program("tools", "deb", *_TAR, "tree"),
        source_date_epoch=TOOLS_EPOCH,
        inputs={"repository": StageOutput(mirror.name, "repository")},
        outputs=(Output("tree"),),
    )
    return (mirror, unpack)


def _kernel(recipe: Recipe) -> Stage:
    outputs = (Output("vmlinuz"), Output("modules"), Output("config"), Output("release"))
    inputs: dict[str, Input] = {"repository": StageOutput("mirror-kernel", "repository")}
    if not isinstance(recipe.kernel, SourceKernel):
        return Stage(
            name="kernel",
            program=_program("kernel_package", "deb", *_TAR),
            source_date_epoch=recipe.source_date_epoch,
            tools=StageOutput("tools-image", "tree"),
            inputs=inputs,
            outputs=outputs,
        )
    inputs |= {
        numbered(FRAGMENT, index): RecipeFile(path) for index, path in enumerate(recipe.kernel.fragments)
    }
    inputs |= {numbered(PATCH, index): RecipeFile(path) for index, path in enumerate(recipe.kernel.patches)}
    return Stage(
        name="kernel",
        program=_program("kernel_source", "deb", *_TAR),
        source_date_epoch=recipe.source_date_epoch,
        tools=StageOutput("tools-kernel", "tree"),
        inputs=inputs,
        # Paths, for messages: what the fragments and patches hold are inputs.
        params={
            "arch": recipe.arch,
            "fragments": list(recipe.kernel.fragments),
            "patches": list(recipe.kernel.patches),
        },
        outputs=outputs,
        accelerators=("ccache",),
    )


def _packages(recipe: Recipe, lock: Lock) -> Stage:
    return Stage(
        name="packages",
        program=_program("packages", "deb", *_TAR),
        source_date_epoch=recipe.source_date_epoch,
        tools=StageOutput("tools-packages", "tree"),
        inputs={"repository": StageOutput("mirror-root", "repository")},
        params={
            "suite": recipe.suite,
            "arch": recipe.arch,
            "packages": [f"{file.name}:{file.arch}={file.version}" for file in lock.of_set("root")],
        },
        outputs=(Output("tree"),),
    )


def _rootfs(recipe: Recipe) -> Stage:
    inputs: dict[str, Input] = {
        "packages": StageOutput("packages", "tree"),
        "modules": StageOutput("kernel", "modules"),
    }
    files: list[Json] = []
    for index, file in enumerate(recipe.files):
        entry: dict[str, Json] = file.model_dump(exclude={"source"})
        if file.source is not None:
            entry["input"] = numbered(FILE, index)
            inputs[numbered(FILE, index)] = RecipeFile(file.source)
        files.append(entry)
    return Stage(
        name="rootfs",
        program=_program("rootfs", *_TAR, "tree"),
        source_date_epoch=recipe.source_date_epoch,
        tools=StageOutput("tools-image", "tree"),
        inputs=inputs,
        params={
            "hostname": recipe.hostname,
            "files": files,
            "users": [user.model_dump(mode="json") for user in recipe.users],
            "units": recipe.units.model_dump(mode="json"),
        },
        outputs=(Output("tree"),),
    )


def _initramfs(recipe: Recipe) -> Stage:
    inputs: dict[str, Input] = {
        "repository": StageOutput("mirror-initramfs", "repository"),
        "modules": StageOutput("kernel", "modules"),
        "release": StageOutput("kernel", "release"),
    }
    files: list[Json] = []
    for index, file in enumerate(recipe.initramfs.files):
        inputs[numbered(FILE, index)] = RecipeFile(file.source)
        files.append({"path": file.path, "mode": file.mode, "input": numbered(FILE, index)})
    return Stage(
        name="initramfs",
        program=_program("initramfs", "deb", *_TAR, also=("initramfs",)),
        source_date_epoch=recipe.source_date_epoch,
        tools=StageOutput("tools-image", "tree"),
        inputs=inputs,
        params={"modules": list(recipe.kernel.modules), "files": files},
        outputs=(Output("initramfs"),),
    )


def _image(recipe: Recipe) -> Stage:
    return Stage(
        name="image",
        program=_program("image", "fsverity", "packs"),
        source_date_epoch=recipe.source_date_epoch,
        tools=StageOutput("tools-image", "tree"),
        inputs={
            "vmlinuz": StageOutput("kernel", "vmlinuz"),
            "release": StageOutput("kernel", "release"),
            "initramfs": StageOutput("initramfs", "initramfs"),
            "metadata": StageOutput("composefs", "metadata"),
            "digest": StageOutput("composefs", "digest"),
            "objects": StageOutput("composefs", "objects"),
            "tree": StageOutput("rootfs", "tree"),
        },
        params={
            "arch": recipe.arch,
            "cmdline": list(recipe.cmdline),
            "variants": list(recipe.variants),
        },
        outputs=(Output("layout", OutputKind.FILES), Output("manifest")),
    )


def _sbom(recipe: Recipe, lock: Lock, tools: Lock) -> Stage:
    ran = [file for file in tools.packages if set(file.sets) & set(tool_sets(recipe))]
    locked: dict[str, Json] = {
        name: [_named(file) for file in lock.of_set(name)] for name in ("root", "kernel", "initramfs")
    }
    return Stage(
        name="sbom",
        program=_program("sbom", "deb", *_TAR, "purl"),
        source_date_epoch=recipe.source_date_epoch,
        tools=StageOutput("tools-image", "tree"),
        inputs={
            "manifest": StageOutput("image", "manifest"),
            "release": StageOutput("kernel", "release"),
            "modules": StageOutput("kernel", "modules"),
            "initramfs": StageOutput("initramfs", "initramfs"),
            "packages": StageOutput("packages", "tree"),
            "kernel": StageOutput("mirror-kernel", "repository"),
            "runtime": StageOutput("mirror-initramfs", "repository"),
        },
        params={
            "name": recipe.platform_slug,
            "suite": recipe.suite,
            "arch": recipe.arch,
            **locked,
            "tools": [_named(file) for file in ran],
        },
        outputs=(Output("document"),),
    )


def _named(file: LockedFile) -> Json:
    return {"name": file.name, "version": file.version, "arch": file.arch, "sha256": file.sha256}
