"""Archives of each distribution, built once, and fresh environments to install them in."""

from __future__ import annotations

import functools
import subprocess
import sys
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


@pytest.fixture(scope="session")
def package_index(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Skips where no package index answers, and only there."""
    download = [sys.executable, "-m", "pip", "download", "--no-cache-dir", "--no-deps", "--retries=1", "--timeout=15"]
    command = [*download, "--dest", str(tmp_path_factory.mktemp("index")), "idna"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    if result.returncode != 0:
        pytest.skip(f"no package index answers: {result.stderr.strip().splitlines()[-1]}")


@pytest.fixture
def environment(package_index: None, tmp_path: Path) -> Environment:
    return Environment(tmp_path / "environment")
