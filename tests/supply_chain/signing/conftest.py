from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from supply_chain.registry.retry import Policy
from supply_chain.trust import Trust
from tests.supply_chain.signing.through_proxy import Behind, behind_proxy


@pytest.fixture
def behind(tmp_path: Path, embedded_trust: Trust, policy: Policy) -> Iterator[Behind]:
    """An image, and services that go wrong as planned."""
    (tmp_path / "built").mkdir()
    with behind_proxy(tmp_path / "built", embedded_trust, policy) as found:
        yield found
