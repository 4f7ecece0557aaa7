"""disk-image platform: the embedded platform, which is an extra of the package. One action, one module."""

from __future__ import annotations

from pipelines.errors import UsageError

try:
    import fastapi
    import sqlalchemy
except ImportError as error:
    raise UsageError(
        f"the platform needs the package {error.name}", "pip install 'disk-image-ci[platform]'"
    ) from None

del fastapi, sqlalchemy
