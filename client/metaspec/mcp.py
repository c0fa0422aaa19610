"""An MCP server: tools that let an assistant predict, optimise, verify and draw colour routers. Needs the extra `mcp`.

    build("http://127.0.0.1:8000", Path("designs")).run("stdio")

is what `metaspec mcp --folder designs` does. It speaks the Model Context Protocol by the official SDK, asks a server of models
like every client, and reads and writes files in one working folder only. `docs/mcp.md` describes the tools.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from metaspec._extras import missing_extra

try:
    from mcp.server.mcpserver import Context, MCPServer
    from mcp.server.mcpserver.exceptions import ToolError
    from mcp.types import ToolAnnotations
except ImportError as error:
    raise missing_extra("metaspec.mcp needs", "mcp", "mcp") from error

from pydantic import ValidationError

from metaspec._mcp.folder import Folder
from metaspec._mcp.limits import Limits
from metaspec._mcp.looking import Looking
from metaspec._mcp.models import Models
from metaspec._mcp.running import Running
from metaspec._version import __version__
from metaspec_contract.model import DEFAULT_MODEL
from metaspec_contract.source import SourceError
from metaspec_contract.validation import first_error

__all__ = ["Limits", "build"]


def __dir__() -> list[str]:
    return __all__


_INSTRUCTIONS = (
    "Design of colour routers: periodic cells of solid (1) and void (0) that steer red, green and blue light to the detectors "
    "R, G1, G2 and B under them. Begin with list_models. Files are named relative to the working folder. Predictions come "
    "from a neural network: verify designs by the solver before you trust them. optimise and verify answer after a limited "
    "time, unfinished; the same call again resumes."
)

_EXPECTED = (ValueError, OSError, ImportError, SourceError)  # their messages are for the caller
_ANNOTATIONS = ToolAnnotations(
    read_only_hint=False, destructive_hint=False, idempotent_hint=True, open_world_hint=False
)


class _Server(MCPServer[None]):
    """A server whose errors name the argument, what was expected and what came; unknown arguments are refused."""

    async def call_tool(self, name: str, arguments: dict[str, Any], context: Context[None, Any] | None = None) -> Any:
        known = {tool.name: tool.input_schema.get("properties", {}) for tool in await self.list_tools()}
        if unknown := sorted(arguments.keys() - known.get(name, arguments).keys()):
            raise ToolError(f"{name} has no argument {unknown[0]}, only {', '.join(known[name])}")
        try:
            return await super().call_tool(name, arguments, context)
        except ToolError as error:
            cause = error.__cause__
            if isinstance(cause, ValidationError):
                raise ToolError(f"{name}: {first_error(cause)}") from cause
            if isinstance(cause, _EXPECTED):
                raise ToolError(f"{name}: {cause}") from cause
            raise


def build(
    url: str, folder: Path, *, model: str = DEFAULT_MODEL, api_key: str | None = None, limits: Limits | None = None
) -> MCPServer[None]:
    """The MCP server; its method `run("stdio")` serves a client at the standard streams of this process.

    Args:
        url: address of the server of models, see `metaspec.Surrogate`.
        folder: working folder, which exists: nothing outside it is read or written.
        model: name of the default model.
        api_key: API key of the server of models, if it requires one.
        limits: limits of a call.

    Raises:
        ValueError: there is no such folder, or the URL has another scheme.
        ImportError: a package of the extra is not installed.
    """
    working, most = Folder(folder), limits or Limits()
    models = Models(url, model, api_key)

    @asynccontextmanager
    async def lifespan(_: MCPServer[None]) -> AsyncIterator[None]:
        try:
            yield
        finally:
            models.close()

    server = _Server(
        "metaspec",
        title="MetaSpec",
        version=__version__,
        instructions=_INSTRUCTIONS,
        log_level="ERROR",
        lifespan=lifespan,
    )
    looking, running = Looking(models, working, most), Running(models, working, most)
    for tool in (
        looking.list_models,
        looking.predict,
        looking.gradient,
        looking.draw,
        running.optimise,
        running.verify,
    ):
        server.add_tool(tool, description=inspect.getdoc(tool), annotations=_ANNOTATIONS)
    return server
