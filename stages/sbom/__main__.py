"""manifest, initramfs, release, the installed root, the mirrors' packages → document: the image's SBOM.

What the image holds: the root's packages, and those of the initramfs's runtime that gave it a file. What it
was made from: the kernel's package, every source package, and the tools that stages ran.
"""

from __future__ import annotations

import tarfile

from stages.sbom import packages, parts
from stages.sbom.spdx import Document, Relation
from stages.shared import purl
from stages.shared.job import Job, main


def program(job: Job) -> None:
    """Write the output `document`."""
    distro = purl.DISTRO[job.params["suite"]]
    image = parts.describe(
        name=job.params["name"],
        arch=job.params["arch"],
        manifest=job.input("manifest").read_bytes(),
        release=job.input("release").read_text().strip(),
        initramfs=job.input("initramfs").read_bytes(),
    )
    document = Document(f"{job.params['name']}-{job.params['arch']}", image.image, job.source_date_epoch)
    for part in (image.kernel, image.initramfs, image.root, image.init, *image.modules):
        document.add(part)
    document.relate(image.image, Relation.CONTAINS, (image.kernel, image.initramfs, image.root))
    document.relate(image.initramfs, Relation.CONTAINS, (image.init, *image.modules))

    root = packages.Contents()
    with tarfile.open(job.input("packages"), "r:", encoding="utf-8") as archive:
        root.read(archive)
    for package, source in packages.installed(root, _locked(job, "root"), distro):
        document.relate(image.root, Relation.CONTAINS, [document.add(package)])
        document.relate(package, Relation.GENERATED_FROM, [document.add(source)])
    for package, source, paths in packages.unpacked(job.input("runtime"), _locked(job, "initramfs"), distro):
        # Modules of Python are compiled on the way.
        if image.paths & paths or image.paths & {f"{path}c" for path in paths}:
            document.relate(image.initramfs, Relation.CONTAINS, [document.add(package)])
            document.relate(package, Relation.GENERATED_FROM, [document.add(source)])
    kernel = [image.kernel, *image.modules]
    if (modules := parts.kernel_modules(job.input("modules"), image.kernel)) is not None:
        document.relate(image.root, Relation.CONTAINS, [document.add(modules)])
        kernel.append(modules)
    for package, source in packages.described(job.input("kernel"), _locked(job, "kernel"), distro):
        document.add(package)
        for made in kernel:
            document.relate(made, Relation.GENERATED_FROM, [package])
        document.relate(package, Relation.GENERATED_FROM, [document.add(source)])
    for tool in packages.tools(_locked(job, "tools")):
        document.relate(document.add(tool), Relation.BUILD_TOOL_OF, [image.image])

    content = document.to_bytes()
    job.output("document").write_bytes(content)
    print(f"{document.count} elements, {len(content)} bytes")


def _locked(job: Job, name: str) -> list[packages.Locked]:
    return [packages.Locked.parse(each) for each in job.params[name]]


if __name__ == "__main__":
    main(program)
