"""What all tools of the MCP server work with."""

from __future__ import annotations

from metaspec._mcp.folder import Folder
from metaspec._mcp.limits import Limits
from metaspec._mcp.models import Models


class Tools:
    """Tools, which are the public methods of subclasses: their docstrings and signatures are what clients are told.

    Args:
        models: models of the server.
        folder: working folder.
        limits: limits of a call.
    """

    def __init__(self, models: Models, folder: Folder, limits: Limits) -> None:
        self._models, self._folder, self._limits = models, folder, limits
