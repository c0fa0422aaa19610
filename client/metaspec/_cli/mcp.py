"""`metaspec mcp`: the tools for assistants that speak the Model Context Protocol."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from metaspec._cli.sources import ApiKey, Model, Url
from metaspec._surrogate.base import DEFAULT_URL
from metaspec_contract.model import DEFAULT_MODEL


def mcp(
    folder: Annotated[
        Path, typer.Option(help="Working folder. Nothing outside it is read or written.", exists=True, file_okay=False)
    ],
    url: Url = DEFAULT_URL,
    model: Model = DEFAULT_MODEL,
    api_key: ApiKey = None,
    max_structures: Annotated[
        int, typer.Option(help="Largest number of structures of a prediction, gradient or verification.", min=1)
    ] = 64,
    max_steps: Annotated[int, typer.Option(help="Largest number of steps of an optimisation.", min=1)] = 500,
    max_starts: Annotated[int, typer.Option(help="Largest number of starts of an optimisation.", min=1)] = 16,
    max_seconds: Annotated[
        float,
        typer.Option(help="Seconds after which an optimisation or a verification answers as far as it came.", min=0.1),
    ] = 45.0,
    max_cells: Annotated[int, typer.Option(help="Finest grid of a verification, in cells per period.", min=24)] = 80,
    workers: Annotated[int, typer.Option(help="Processes of a verification.", min=1)] = 1,
) -> None:
    """Serve the tools of an assistant over standard input and output, by the Model Context Protocol.

    The assistant's program starts this command: see docs/mcp.md.
    """
    from metaspec.mcp import Limits, build  # needs the extra "mcp"

    limits = Limits(max_structures, max_steps, max_starts, max_seconds, max_cells, workers)
    build(url, folder, model=model, api_key=api_key, limits=limits).run("stdio")
