"""What the Dagger module is made of, without an engine."""

from __future__ import annotations

import json
import tomllib

from pipelines.sources import PROJECT


def test_the_module_has_every_package_that_its_wheel_is_built_from() -> None:
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())
    included = json.loads((PROJECT / "dagger.json").read_text())["include"]
    for package in project["tool"]["uv"]["build-backend"]["module-name"]:
        assert {f"{package}/**/*", f"{package}/__init__.py"} & set(included), package
