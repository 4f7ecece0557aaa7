"""What an image was made from and by whom: SLSA provenance v1 (https://slsa.dev/spec/v1.0/provenance).

`disk-image build` writes all of it but who vouches: the BuildRecord, beside the layout. `sign` completes it
with the builder's identity, which only the signing certificate shows. The build definition is a function of
recipe, locks, programs and commit alone; what belongs to one run stands in the run details and nowhere else.
docs/reference/attestations.md describes every field.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator
from pydantic.alias_generators import to_camel

from pipelines.definition import Json, canonical_json
from supply_chain.beside import REBUILD, build_record_path, read_beside
from supply_chain.errors import InvalidDocument, LayoutError
from supply_chain.layout import open_layout
from supply_chain.oci import DOCUMENT_LIMIT, Digest, broken_rule, parse_object

# Raised when the meaning of a parameter changes.
BUILD_TYPE: Final = "https://powernode.org/disk-image-ci/image/v1"
# What the two locks' files and the commit are called as dependencies.
RECIPE_LOCK, TOOLS_LOCK, SOURCE = "lock", "tools-lock", "source"

GIT_SHA = r"^(?:[0-9a-f]{40}|[0-9a-f]{64})$"
_TIME = r"^[0-9]{4}-[01][0-9]-[0-3][0-9]T[0-2][0-9]:[0-5][0-9]:[0-6][0-9]Z$"
_HINT = "don't trust it; build and sign the image again"

_Hex = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_GitSha = Annotated[str, Field(pattern=GIT_SHA)]
_Time = Annotated[str, Field(pattern=_TIME)]
_Text = Annotated[str, Field(min_length=1, max_length=4096)]


class _Model(BaseModel):
    model_config = ConfigDict(
        frozen=True, strict=True, extra="forbid", alias_generator=to_camel, populate_by_name=True
    )

    def to_json(self) -> dict[str, Json]:
        """As the specification writes it, without fields that are not set."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)

    def to_bytes(self) -> bytes:
        """Canonical JSON."""
        return canonical_json(self.to_json())


class Digests(_Model):
    """in-toto's DigestSet: a file's sha256, or the commit of a git repository."""

    sha256: _Hex | None = None
    git_commit: _GitSha | None = None


class ResourceDescriptor(_Model):
    """in-toto's ResourceDescriptor v1, of the fields that are used here. `annotations` say what a package is
    for: `sets`, the lock's names for it.
    """

    name: _Text | None = None
    uri: _Text | None = None
    digest: Digests | None = None
    annotations: Mapping[str, JsonValue] | None = None

    @model_validator(mode="after")
    def _names_something(self) -> ResourceDescriptor:
        if self.uri is None and self.digest is None:
            raise ValueError("needs a uri or a digest")
        return self


class ExternalParameters(_Model):
    """All that the caller chose: the recipe as data and, when it is known, the commit that was built."""

    recipe: Mapping[str, JsonValue]
    git_sha: _GitSha | None = None


class InternalParameters(_Model):
    """What the builder chose: the version of the environment that stages run in (pipelines/keys.py)."""

    stage_environment: int


class BuildDefinition(_Model):
    """The build's inputs: equal for every run that builds the same thing, whichever executor ran it."""

    build_type: Literal["https://powernode.org/disk-image-ci/image/v1"]
    external_parameters: ExternalParameters
    internal_parameters: InternalParameters
    resolved_dependencies: tuple[ResourceDescriptor, ...] = Field(strict=False)

    @model_validator(mode="after")
    def _one_commit(self) -> BuildDefinition:
        commits = [each.digest.git_commit for each in self.resolved_dependencies if each.digest]
        found = [commit for commit in commits if commit is not None]
        wanted = [] if self.git_sha is None else [self.git_sha]
        if found != wanted:
            raise ValueError(
                f"gitCommit of the dependencies: expected {wanted}, as gitSha says, found {found}"
            )
        return self

    @property
    def git_sha(self) -> str | None:
        """The commit that was built, None when the build could not say."""
        return self.external_parameters.git_sha

    def dependency(self, name: str) -> ResourceDescriptor | None:
        """The dependency of that name: RECIPE_LOCK, TOOLS_LOCK, SOURCE, `recipe:PATH`, `plan` or
        `programs`.
        """
        return next((each for each in self.resolved_dependencies if each.name == name), None)

    def packages(self) -> Mapping[str, str]:
        """Package URL → sha256 (hex) of every locked file that the build used."""
        return {
            each.uri: each.digest.sha256
            for each in self.resolved_dependencies
            if each.uri and each.uri.startswith("pkg:deb/") and each.digest and each.digest.sha256
        }


class Metadata(_Model):
    """One run. Times are UTC, RFC 3339; `invocation_id` is the forge's URL of the run, else a random UUID's
    URN.
    """

    invocation_id: _Text
    started_on: _Time
    finished_on: _Time


class _BuilderFacts(_Model):
    # Of each component: its version. `executor` is `local`, or `dagger` and the engine's version.
    version: Mapping[str, str]
    # The Dagger executor's bootstrap image; what the local executor stands on is this machine.
    builder_dependencies: tuple[ResourceDescriptor, ...] | None = Field(default=None, strict=False)


class UnnamedBuilder(_BuilderFacts):
    """A builder nobody vouches for yet."""


class Builder(_BuilderFacts):
    """`id` is the identity in the signing certificate, so that readers can compare the two."""

    id: _Text


class UnsignedRun(_Model):
    """SLSA's runDetails without `builder.id`."""

    builder: UnnamedBuilder
    metadata: Metadata


class RunDetails(_Model):
    """SLSA's runDetails."""

    builder: Builder
    metadata: Metadata


class BuildRecord(_Model):
    """`LAYOUT.build.json`: the provenance of `image` (the manifest's digest) without the builder's id."""

    schema_version: Literal[1] = 1
    image: Digest
    build_definition: BuildDefinition
    run_details: UnsignedRun


class Provenance(_Model):
    """The predicate of type https://slsa.dev/provenance/v1."""

    build_definition: BuildDefinition
    run_details: RunDetails


def complete(record: BuildRecord, builder_id: str) -> Provenance:
    """The provenance that a builder with this identity vouches for."""
    facts = record.run_details.builder
    return Provenance(
        build_definition=record.build_definition,
        run_details=RunDetails(
            builder=Builder(
                id=builder_id, version=facts.version, builder_dependencies=facts.builder_dependencies
            ),
            metadata=record.run_details.metadata,
        ),
    )


def parse_provenance(predicate: Mapping[str, Any], what: str) -> Provenance:
    """Read a statement's predicate. Raises InvalidDocument naming `what` and the field; another build type
    than ours is one too.
    """
    return _validated(Provenance, predicate, what, _HINT)


def read_build_record(layout: Path) -> BuildRecord:
    """The record that `disk-image build` wrote beside the layout's folder. Raises LayoutError when it is not
    there, not a record, or names another image than the layout's index does.
    """
    path = build_record_path(layout)
    content = read_beside(path, DOCUMENT_LIMIT)
    try:
        record = _validated(BuildRecord, parse_object(content, str(path)), str(path), REBUILD)
    except InvalidDocument as error:
        raise LayoutError(error.what, REBUILD) from None
    check_image(path, layout, record.image)
    return record


def check_image(path: Path, layout: Path, image: str) -> None:
    """Raise LayoutError unless the layout's image is `image`, the one that the file at `path` is about."""
    if (found := open_layout(layout).image.digest) != image:
        raise LayoutError(
            f"{path}: expected it to be about {found}, as {layout} holds, found {image}", REBUILD
        )


_Read = TypeVar("_Read", bound=_Model)


def _validated(model: type[_Read], loaded: Mapping[str, Any], what: str, hint: str) -> _Read:
    try:
        return model.model_validate(loaded, by_name=False)
    except ValidationError as error:
        raise broken_rule(error, what, hint) from None
