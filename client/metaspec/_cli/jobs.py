"""`metaspec jobs`: many optimisations on one machine, over HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from metaspec._cli.sources import ApiKey, Url
from metaspec._surrogate.base import DEFAULT_URL


def jobs(
    folder: Annotated[
        Path,
        typer.Option(help="Folder of the run folders, created if necessary. It is all that is kept.", file_okay=False),
    ],
    host: Annotated[
        str, typer.Option(help="Address to listen at; one that other machines reach needs a token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen at; 0 for a free one.", min=0, max=65535)] = 8100,
    token_file: Annotated[
        Path | None,
        typer.Option(help="File with the token that callers need: one word of at least 16 characters.", dir_okay=False),
    ] = None,
    workers: Annotated[int, typer.Option(help="Number of jobs that run at once; others wait in order.", min=1)] = 1,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """Start, watch, pause and rank optimisations on this machine, over HTTP and on a page.

    Ctrl-C pauses what runs; the same command goes on with it. After a crash, too: see docs/jobs.md.
    """
    from metaspec.jobs import read_token, serve  # needs the extra "studio"

    token = None if token_file is None else read_token(token_file)
    serve(folder, url=url, api_key=api_key, host=host, port=port, token=token, workers=workers)
