"""What the commands that make run folders share: options, what is refused before a run, and how a run ends."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console

from metaspec._cli import display
from metaspec._design.features import check_width
from metaspec._run_lock import locked
from metaspec.objectives import Objective
from metaspec.optimise import Result
from metaspec.topology import Parameterisation
from metaspec_contract.gdsii import Layer
from metaspec_contract.layouts import OUTLINE_LAYER, parse_layer
from metaspec_contract.process import Process
from metaspec_contract.report_page import narrow
from metaspec_contract.source import Source, SourceError, SourceInfo

CHECKPOINT = "checkpoint.npz"
"""File of an unfinished run, in its folder."""

CACHE = "cache"
"""Folder of an unfinished run for what its source has computed: a repeated command loses only what was being computed."""

Check = Annotated[
    bool,
    typer.Option("--check", help="Check the options and the files they name, and end: nothing is asked or written."),
]
GdsLayer = Annotated[str, typer.Option(help="Layer and datatype of the solid in the layouts.")]
GdsUnit = Annotated[
    float | None,
    typer.Option(help="Database unit of the layouts in nm, such as 1.  [default: 1 for contours, exact for pixels]"),
]
Tolerance = Annotated[
    float | None,
    typer.Option(help="Largest distance of smooth contours from the pixels' edges in nm.  [default: one pixel]"),
]


def solid_layer(text: str) -> Layer:
    """Layer and datatype of `--gds-layer`.

    Raises:
        ValueError: not two integers that GDSII can hold, or the layer of the unit cell's outline.
    """
    layer = parse_layer(text, "--gds-layer")
    if layer == OUTLINE_LAYER:
        raise ValueError(f"--gds-layer must not be {text}, the layer of the unit cell's outline")
    return layer


def run_settings(
    *,
    objective: str,
    steps: int,
    starts: int,
    optimiser: str,
    radius_nm: float,
    symmetry: str,
    min_feature_nm: float,
    seed: int,
    stop_rule: Mapping[str, Any] | None = None,
    robust_delta: float = 0.0,
    spread_penalty: float = 0.0,
    gds_layer: str = "1/0",
) -> dict[str, Any]:
    """Configuration fingerprint of `metaspec optimise`, compared on resume; those of starts, layouts and source come on top.

    The arguments are the command's; `stop_rule` holds its patience, if there is any.
    """
    return {
        "objective": objective,
        "steps": steps,
        **(stop_rule or {}),
        "starts": starts,
        "optimiser": optimiser,
        "radius_nm": radius_nm,
        "symmetry": symmetry,
        "robust_delta": robust_delta,
        "spread_penalty": spread_penalty,
        "min_feature_nm": min_feature_nm,
        "seed": seed,
        "gds_layer": gds_layer,
    }


def ranked_by(objective: str, robust_delta: float, spread_penalty: float) -> str:
    """What designs of a run are ranked by, in words."""
    words = f"objective {objective}"
    if spread_penalty:
        words += f" less {spread_penalty:g} times the spread"
    return f"{words}, the worst of eroded, nominal and dilated" if robust_delta else words


def layout_settings(unit_nm: float | None, tolerance_nm: float | None) -> dict[str, float]:
    """Settings of the layouts that were given."""
    given = {"gds_unit_nm": unit_nm, "contour_tolerance_nm": tolerance_nm}
    return {name: value for name, value in given.items() if value is not None}


def check_layouts(process: Process, unit_nm: float | None, tolerance_nm: float | None) -> None:
    """Refuse a database unit or a tolerance of contours that does not fit the process, before the run.

    Raises:
        ValueError: it does not fit; the option is named.
    """
    from metaspec.layouts import check_tolerance, check_unit

    try:
        if unit_nm is not None:
            check_unit(unit_nm, process.period_um)
    except ValueError as error:
        raise ValueError(f"--gds-unit-nm: {error}") from None
    try:
        if tolerance_nm is not None:
            check_tolerance(tolerance_nm, process.pixel_nm)
    except ValueError as error:
        raise ValueError(f"--contour-tolerance-nm: {error}") from None


@contextmanager
def resumable(where: Callable[[], str], resumes: bool = True) -> Iterator[None]:
    """Where Ctrl-C, a signal or a failed source ends a command, say how far it came and how to resume, and exit.

    Args:
        where: function that returns how far it came, such as " after step 3 of 200"; "" where nothing is done yet.
        resumes: whether the same command resumes.
    """
    again = " Repeat the command to resume." if resumes else ""
    try:
        yield
    except KeyboardInterrupt:
        typer.echo(f"Interrupted{where()}.{again}", err=True)
        raise typer.Exit(130) from None
    except SystemExit as error:  # from the handler of SIGTERM
        typer.echo(f"Terminated{where()}.{again}", err=True)
        raise typer.Exit(int(error.code or 0)) from None
    except SourceError as error:
        if not where():
            raise
        typer.echo(f"metaspec: {error}\nStopped{where()}.{again}", err=True)
        raise typer.Exit(2) from None


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


@contextmanager
def working_in(out: Path, settings: Mapping[str, Any]) -> Iterator[None]:
    """Work in a run folder, as the only process, until the block ends. It is created if necessary and gets `settings.json`.

    Raises:
        ValueError: another process works in it or has just finished it, or it belongs to something else.
    """
    from metaspec.designs import begin, is_finished  # needs the extra "optimise"

    out.mkdir(parents=True, exist_ok=True)
    with locked(out):
        if is_finished(out, settings):
            raise ValueError(f"{out} has just been finished by another process")
        begin(out, settings)
        yield


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


def check_objective(name: str, objective: Objective, info: SourceInfo) -> None:
    """Refuse an objective of bands or channels that a source does not have, before the run.

    Raises:
        ValueError: it has not; the objective is named.
    """
    try:
        objective.score(np.full(info.spectra_shape, 0.1), info.wavelengths_nm, info.channels)
    except ValueError as error:
        raise ValueError(f"objective {name}: {error}") from None


def check_answers(source: Source, gradient: bool = True) -> None:
    """Ask a model once for what its run needs, so that nothing is begun where it refuses; a solver has everything.

    Args:
        source: source of the run.
        gradient: whether the run needs gradients.

    Raises:
        SourceError: it refuses.
    """
    info = source.metadata()
    if info.simulated:
        return
    if gradient:
        source.gradient(np.zeros(info.pixels), np.zeros(info.spectra_shape))
    else:
        source.predict(np.zeros(info.pixels))


def end(out: Path, console: Console, result: Result, report: Mapping[str, Any], advice: str) -> None:
    """Remove what an unfinished run needs, and print the designs and what to do next."""
    (out / CHECKPOINT).unlink(missing_ok=True)
    shutil.rmtree(out / CACHE, ignore_errors=True)
    console.print(display.designs(report))
    if warning := narrow(report):
        typer.echo(f"Warning: {warning}")
    typer.echo(
        f"{result.structures_evaluated:,} structures in {result.wall_s:.0f} s. {out / 'report.html'} shows the designs.\n"
        + advice
    )
