"""Archives of each distribution, built once, and fresh environments to install them in."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import pytest

from metaspec_testing.distributions import ROOT, Archives, Environment, build


@pytest.fixture(scope="session")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Archives]:
    """The archives of a distribution, by its folder."""

    @functools.cache
    def built(folder: str) -> Archives:
        return build(ROOT / folder, tmp_path_factory.mktemp(folder))

    return built


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    return Environment(tmp_path / "environment")
