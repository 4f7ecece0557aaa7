"""Embedded trusts whose keys the tests hold, and signed images."""

from __future__ import annotations

from pathlib import Path

import pytest

from supply_chain.trust import init_embedded, load_trust
from tests.supply_chain.verify.bench import Bench
from tests.supply_chain.verify.forge import Forge
from tests.supply_chain.verify.signed_image import Signed, make_image, sign


@pytest.fixture(scope="session")
def forge(tmp_path_factory: pytest.TempPathFactory) -> Forge:
    """The trust that images are verified with."""
    return _forge(tmp_path_factory)


@pytest.fixture(scope="session")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Forge:
    """Another trust, with the same names for everything and other keys."""
    return _forge(tmp_path_factory)


@pytest.fixture(scope="session")
def signed(forge: Forge) -> Signed:
    """The image to verify."""
    return sign(forge, make_image())


@pytest.fixture(scope="session")
def other(forge: Forge) -> Signed:
    """Another image by the same signer."""
    return sign(forge, make_image("other"))


@pytest.fixture
def bench(tmp_path: Path, forge: Forge) -> Bench:
    """Verifies with the trust of `forge`."""
    return Bench(tmp_path, forge)


def _forge(tmp_path_factory: pytest.TempPathFactory) -> Forge:
    folder = tmp_path_factory.mktemp("trust") / "trust"
    init_embedded(folder)
    return Forge(load_trust(folder))
