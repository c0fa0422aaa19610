"""Fixtures of the server's tests: the studio in a real browser."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from metaspec_testing import chromium
from metaspec_testing.chromium import Page
from metaspec_testing.servers import RunningServer
from metaspec_testing.studio import opened


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
