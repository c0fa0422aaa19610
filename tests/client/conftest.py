"""What several of the client's tests use: a surrogate of the small server, the command, an address without a server."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import numpy as np
import pytest

from metaspec import Surrogate
from metaspec_testing.commands import Command, give
from metaspec_testing.servers import RunningServer
from metaspec_testing.small_models import Array


@pytest.fixture(scope="session")
def nobody() -> Iterator[str]:
    """Host and port that refuse connections: bound for as long as the tests run, and never listening."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{bound.getsockname()[1]}"


@pytest.fixture(scope="module")
def surrogate(server: RunningServer) -> Iterator[Surrogate]:
    with Surrogate(server.url, progress=False) as surrogate:
        yield surrogate


@pytest.fixture
def metaspec(capfd: pytest.CaptureFixture[str]) -> Command:
    def run(*arguments: object) -> tuple[int, str, str]:
        status = give(arguments)
        output = capfd.readouterr()
        return status, output.out, output.err

    return run


@pytest.fixture
def density() -> Array:
    """Grey structures."""
    return np.random.default_rng(4).uniform(0.2, 0.8, (3, 128, 128)).astype(np.float32)


@pytest.fixture
def weight() -> Array:
    """A cotangent for each of them."""
    return np.random.default_rng(5).normal(size=(3, 4, 301)).astype(np.float32)
