"""Archives of each distribution, built once, and fresh environments to install them in."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import pytest

from metaspec_testing.distributions import ROOT, Archives, Environment, build, find, read_project


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--archives", type=Path, help="folder of archives to test, in place of newly built ones")


@pytest.fixture(scope="session")
def archives(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Archives]:
    """The archives of a distribution, by its folder."""

    given: Path | None = request.config.getoption("--archives", None)

    @functools.cache
    def built(folder: str) -> Archives:
        if given is not None:
            return find(given, read_project(folder)["name"])
        return build(ROOT / folder, tmp_path_factory.mktemp(folder))

    return built


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    return Environment(tmp_path / "environment")
