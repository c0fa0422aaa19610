"""Fixtures that several folders share: a small but real model repository, and the real server on a real port."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from metaspec_testing.servers import RunningServer, running_server
from metaspec_testing.small_models import (
    Array,
    Expected,
    ExpectedGradient,
    small_gradient_model,
    small_model,
    write_repository,
)

if TYPE_CHECKING:
    from metaspec_testing.direct import Direct

ROOT = Path(__file__).parent
LONG = (
    "export",
    "end_to_end/test_chain.py",
    "end_to_end/test_end_to_end.py",
    "end_to_end/test_server_docs.py",
    "distributions",
    "simulation",
    "training",
)
"""What takes longest, longest first: started first, so that no worker is left with it at the end."""

SHARING = {
    "export": ("export/",),
    "archives": ("distributions/test_archives.py", "distributions/test_install.py"),
    "bundled": ("end_to_end/test_end_to_end.py", "end_to_end/test_server_docs.py", "end_to_end/test_tutorial.py"),
}
"""Tests that share what takes long to make: exported models, archives, and a server of all bundled models."""


@pytest.fixture(autouse=True)
def _signal_handlers() -> Iterator[None]:
    """Commands that are called in this process set handlers, which must not reach the next test."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One worker runs all tests of a file, and all tests that share what takes long to make."""

    def place(item: pytest.Item) -> str:
        return item.path.relative_to(ROOT).as_posix()

    def rank(item: pytest.Item) -> int:
        return next((n for n, start in enumerate(LONG) if place(item).startswith(start)), len(LONG))

    items.sort(key=rank)
    for item in items:
        group = next((name for name, starts in SHARING.items() if place(item).startswith(starts)), place(item))
        item.add_marker(pytest.mark.xdist_group(group))


@pytest.fixture(scope="session")
def small_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_repository(tmp_path_factory.mktemp("repository"), small_model())
    return write_repository(root, small_gradient_model())


@pytest.fixture(scope="session")
def server(small_repository: Path) -> Iterator[RunningServer]:
    with running_server("--repository", str(small_repository), "--max-structures", "600") as running:
        yield running


@pytest.fixture(scope="session")
def expected(small_repository: Path) -> Expected:
    """What the small model computes, by ONNX Runtime alone."""
    import onnxruntime

    session = onnxruntime.InferenceSession(small_repository / "diffractionnet" / "1" / "model.onnx")

    def run(structures: Array) -> Array:
        density = structures.reshape(-1, 1, 128, 128).astype(np.float32)
        spectra: Array = session.run(None, {"structure": density})[0]
        return spectra

    return run


@pytest.fixture(scope="session")
def expected_gradient(small_repository: Path) -> ExpectedGradient:
    """What the small gradient model computes, by ONNX Runtime alone."""
    import onnxruntime

    session = onnxruntime.InferenceSession(small_repository / "diffractionnet_vjp" / "1" / "model.onnx")

    def run(structures: Array, cotangent: Array) -> Array:
        density = structures.reshape(-1, 1, 128, 128).astype(np.float32)
        gradient: Array = session.run(["gradient"], {"structure": density, "cotangent": cotangent.astype(np.float32)})[
            0
        ]
        return gradient[:, 0]

    return run


@pytest.fixture(scope="session")
def with_conditions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository of two small models that take a distance and an incidence."""
    from metaspec_testing.direct import conditioned_repository

    return conditioned_repository(tmp_path_factory.mktemp("with-conditions"))


@pytest.fixture(scope="session")
def direct(with_conditions: Path) -> Direct:
    """These models, by ONNX Runtime alone."""
    from metaspec_testing.direct import Direct

    return Direct(with_conditions)


@pytest.fixture(scope="session")
def conditioned(with_conditions: Path) -> Iterator[RunningServer]:
    """A server of these models, over HTTP and gRPC."""
    flags = ("--max-structures", "600", "--grpc-port", "0")
    with running_server("--repository", str(with_conditions), *flags) as server:
        yield server


@pytest.fixture
def structures() -> np.ndarray:
    return np.random.default_rng(7).integers(0, 2, (5, 128, 128), dtype=np.uint8)
