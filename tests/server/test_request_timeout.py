"""The private interface of uvicorn that `http/request_timeout.py` builds on. Where this fails, look there first."""

from __future__ import annotations

import asyncio
import inspect
import tomllib
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from packaging.requirements import Requirement
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from metaspec_server.http.request_timeout import protocol_with_timeout

PROJECT = Path(__file__).parents[2] / "server" / "pyproject.toml"
PARAMETERS = {
    "connection_made": ["self", "transport"],
    "on_message_begin": ["self"],
    "on_headers_complete": ["self"],
    "connection_lost": ["self", "exc"],
}


async def unused(scope: Any, receive: Any, send: Any) -> None:
    raise AssertionError("no request is made")


@pytest.mark.parametrize("method", PARAMETERS)
def test_uvicorn_has_the_methods_that_are_overridden(method: str) -> None:
    assert method in vars(HttpToolsProtocol)
    assert list(inspect.signature(vars(HttpToolsProtocol)[method]).parameters) == PARAMETERS[method]


async def test_uvicorn_has_the_attributes_that_are_read() -> None:
    config = uvicorn.Config(unused, lifespan="off")
    state = uvicorn.server.ServerState()
    protocol = HttpToolsProtocol(config=config, server_state=state, app_state={}, _loop=asyncio.get_running_loop())
    assert protocol.loop is asyncio.get_running_loop()
    assert hasattr(protocol, "transport")


def test_uvicorn_takes_the_protocol() -> None:
    protocol = protocol_with_timeout(1.0)
    config = uvicorn.Config(unused, http=protocol, lifespan="off")
    assert config.http is protocol


def test_uvicorn_is_pinned_to_a_minor_version() -> None:
    lines = tomllib.loads(PROJECT.read_text())["project"]["dependencies"]
    (pin,) = (Requirement(line) for line in lines if line.startswith("uvicorn"))
    installed = version("uvicorn")
    assert pin.specifier.contains(installed)
    major, minor, *_ = (int(part) for part in installed.split("."))
    assert not pin.specifier.contains(f"{major}.{minor + 1}.0")
    assert not pin.specifier.contains(f"{major + 1}.0.0")
