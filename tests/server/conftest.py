"""Fixtures of the server's tests: a server whose models take conditions, and the studio in a real browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from metaspec_testing import chromium
from metaspec_testing.chromium import Page
from metaspec_testing.direct import Direct, conditioned_repository
from metaspec_testing.servers import RunningServer, running_server
from metaspec_testing.studio import opened


@pytest.fixture(scope="session")
def with_conditions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository of two small models that take a distance and an incidence."""
    return conditioned_repository(tmp_path_factory.mktemp("with-conditions"))


@pytest.fixture(scope="session")
def direct(with_conditions: Path) -> Direct:
    """These models, by ONNX Runtime alone."""
    return Direct(with_conditions)


@pytest.fixture(scope="session")
def conditioned(with_conditions: Path) -> Iterator[RunningServer]:
    """A server of these models, over HTTP and gRPC."""
    flags = ("--max-structures", "600", "--grpc-port", "0")
    with running_server("--repository", str(with_conditions), *flags) as server:
        yield server


@pytest.fixture(scope="module")
def browser() -> Iterator[Page]:
    """A browser for all tests of a file."""
    with chromium.chromium() as page:
        yield page


@pytest.fixture
def page(browser: Page, server: RunningServer) -> Iterator[Page]:
    """The studio, with an empty cell. Nothing fails in it, and the content security policy refuses nothing."""
    page = opened(browser, server.url)
    browser.complaints.clear()  # those of a test before whose server has ended
    yield page
    assert browser.complaints == []
