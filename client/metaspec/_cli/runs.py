"""What the commands that make run folders share: options, what is refused before a run, and how a run ends."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console

from metaspec._cli import display
from metaspec._cli.display import RunDisplay
from metaspec._design.features import check_width
from metaspec.optimise import Result
from metaspec.topology import Parameterisation
from metaspec_contract.source import SourceError, SourceInfo

CHECKPOINT = "checkpoint.npz"
"""File of an unfinished run, in its folder."""

CACHE = "cache"
"""Folder of an unfinished run for what its source has computed: a repeated command loses only what was being computed."""

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


def is_done(out: Path, settings: Mapping[str, Any]) -> bool:
    """Whether a folder holds the finished run of these settings, which is said.

    Raises:
        ValueError: the folder belongs to something else.
    """
    from metaspec.designs import is_finished  # needs the extra "optimise"

    done = is_finished(out, settings)
    if done:
        typer.echo(f"{out} is finished, nothing to do: see {out / 'report.html'}")
    return done


def parameterisation_for(
    info: SourceInfo, radius_nm: float, symmetry: str | None, min_feature_nm: float
) -> Parameterisation:
    """The parameterisation of a run on a source.

    Args:
        info: description of the source.
        radius_nm: radius of the density filter in nm.
        symmetry: None or "diagonal".
        min_feature_nm: minimum width of solid and void in nm; 0 for any.

    Raises:
        ValueError: radius or width is impossible on the source's device.
    """
    if min_feature_nm:
        check_width(min_feature_nm, info.pixels, info.process.pixel_nm)
    parameterisation = Parameterisation(radius_nm, symmetry, info.process.pixel_nm, min_feature_nm or None)
    parameterisation.density(np.zeros(info.pixels), 1.0)  # refuses a radius that does not fit into the cell
    return parameterisation


def end(out: Path, console: Console, result: Result, report: Mapping[str, Any], advice: str) -> None:
    """Remove what an unfinished run needs, and print the designs and what to do next."""
    (out / CHECKPOINT).unlink(missing_ok=True)
    shutil.rmtree(out / CACHE, ignore_errors=True)
    console.print(display.designs(report))
    typer.echo(
        f"{result.structures_evaluated:,} structures in {result.wall_s:.0f} s. {out / 'report.html'} shows the designs.\n"
        + advice
    )
