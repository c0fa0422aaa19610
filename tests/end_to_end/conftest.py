"""The server as a new user starts it, with all bundled models."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from metaspec_testing.servers import RunningServer, running_server


@pytest.fixture(scope="session")
def bundled() -> Iterator[RunningServer]:
    with running_server("--grpc-port", "0") as server:  # what `make serve` does, but for the port, and gRPC
        yield server
