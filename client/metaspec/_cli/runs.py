"""What the commands that make run folders share: options, and how an unfinished run ends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from metaspec._cli.display import RunDisplay
from metaspec_contract.source import SourceError

GdsLayer = Annotated[str, typer.Option(help="Layer and datatype of the solid in the layouts.")]


def read_layer(text: str) -> tuple[int, int]:
    """Layer and datatype of the option `--gds-layer`.

    Raises:
        ValueError: not two integers that GDSII can hold.
    """
    layer, _, datatype = text.partition("/")
    try:
        numbers = int(layer), int(datatype)
    except ValueError:
        raise ValueError(f"--gds-layer must be two integers, LAYER/DATATYPE, got {text!r}") from None
    from metaspec.gds import check_layer

    check_layer(numbers)
    return numbers


@contextmanager
def resumable(shown: RunDisplay, steps: int) -> Iterator[None]:
    """Where Ctrl-C or a failed source ends a run, say how to resume it, and exit with status 130 or 2."""
    try:
        yield
    except (KeyboardInterrupt, SourceError) as error:
        failed = isinstance(error, SourceError)
        why = f"metaspec: {error}\nStopped" if failed else "Interrupted"
        where = f" after step {shown.step} of {steps}" if shown.step else ""
        typer.echo(f"{why}{where}. Repeat the command to resume.", err=True)
        raise typer.Exit(2 if failed else 130) from None
