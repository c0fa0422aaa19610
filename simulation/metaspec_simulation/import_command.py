"""`metaspec-simulate import`: a data set of raw files that another simulation wrote."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, NoReturn

import numpy as np
import typer
from numpy.typing import NDArray
from tqdm import tqdm

from metaspec_contract.files import write_text
from metaspec_contract.process import Process
from metaspec_simulation.data.importer import (
    MAX_DROPPED,
    PICTURE,
    REPORT,
    Axes,
    Convention,
    ImportReport,
    Pair,
    check_pairs,
    find_pairs,
    read_order,
    require_free,
    require_orientation,
    some_samples,
    write_pairs,
)
from metaspec_simulation.physics.solver import Solver
from metaspec_simulation.process_option import read_stated

_DEFAULT = "default"


def import_files(
    folder: Annotated[Path, typer.Argument(help="Folder of the .npy files.", exists=True, file_okay=False)],
    out: Annotated[Path, typer.Option(help="Folder of the new data set.")],
    process: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="JSON file with the fields of the simulated process that differ from the default, or the word default. "
            "Required.",
        ),
    ] = None,
    order: Annotated[
        str | None,
        typer.Option(
            help="Detectors in the order of the files' channels; row by row where these are (2, 2). R is where x and y are in "
            "the first half of the cell, G1 where only x is in the second, G2 where only y is, B where both are. "
            "By default R,G1,G2,B, and R,G,B for three channels, where G is the mean of G1 and G2."
        ),
    ] = None,
    axes: Annotated[
        Axes,
        typer.Option(
            help="Order of the axes of structures: yx for [y, x], row = y; xy for [x, y]. It says nothing about the channels: "
            "--order does."
        ),
    ] = Axes.YX,
    percent: Annotated[bool, typer.Option("--percent", help="The spectra are in percent, not fractions.")] = False,
    max_dropped: Annotated[
        float,
        typer.Option(
            help="Largest share of wrong rows among the finished ones: up to it they are dropped, above it nothing is "
            "imported. Unfinished and repeated rows are dropped without limit.",
            min=0,
            max=1,
        ),
    ] = MAX_DROPPED,
    compare: Annotated[
        int | None,
        typer.Option(
            metavar="CELLS",
            help="Simulate three samples on a grid of so many cells per period, and refuse the import if their spectra are "
            "others, or are in another order.",
            min=24,
            max=512,
        ),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(
            help="File for the report with all row numbers, also of a refused import. The data set has one in any case.",
            dir_okay=False,
        ),
    ] = None,
) -> None:
    """Make a data set of simulations done elsewhere.

    FOLDER holds pairs of files, binary_dataset_<pixels>_<k>.npy with structures and spectra_latest_<k>.npy with their spectra.
    Each row is checked, and the numbers of wrong ones are stated. Interrupted with Ctrl-C, the command leaves nothing.
    """
    device = _read_device(process)
    convention = Convention(None if order is None else read_order(order), axes, percent)
    require_free(out)
    if report is not None:
        _require_replaceable(report, out)
    try:
        pairs = find_pairs(folder, device, convention)
        with _bar(pairs, "checking") as bar:
            checked = check_pairs(pairs, bar.update)
        if report is not None:
            write_text(report, checked.to_json())
        typer.echo(str(checked))
        checked.require(max_dropped)
        simulated = None if compare is None else _compare(checked, device, compare)
        with _bar(pairs, "writing") as bar:
            write_pairs(checked, out, device, bar.update, simulated)
    except KeyboardInterrupt:
        typer.echo("metaspec-simulate: interrupted; nothing was imported", err=True)
        raise typer.Exit(130) from None
    typer.echo(f"{out} has {checked.kept} samples. All row numbers are in {out / REPORT}.")
    typer.echo(f"Compare {out / PICTURE} with samples that you know: it shows where x, y and the detectors are.")


def _require_replaceable(report: Path, out: Path) -> None:
    """Refuse a file for the report that is something else, or lies in the data set.

    Raises:
        ValueError: it is, or its folder does not exist.
    """
    if out.resolve() in (report.resolve(), *report.resolve().parents):
        raise ValueError(f"--report {report} lies in --out {out}, which has a report in any case: leave it out")
    if not report.absolute().parent.is_dir():
        raise ValueError(f"--report {report}: there is no such folder")
    if report.is_file():  # a device or a pipe is written to
        with report.open("rb") as file:
            if not re.match(rb'\s*{\s*"rows":', file.read(100)):
                raise ValueError(f"--report {report} exists and is no report of an import: choose another file")


def _bar(pairs: list[Pair], doing: str) -> tqdm[NoReturn]:
    return tqdm(total=sum(pair.rows for pair in pairs), desc=doing, unit="row")


def _compare(checked: ImportReport, process: Process, cells: int) -> NDArray[np.float32]:
    """The solver's spectra of some samples, which must be those of the import, (n, 4, W)."""
    samples, solver = some_samples(checked), Solver(process, cells)
    bar = tqdm(samples.structures, "simulating", unit="structure")
    simulated = np.stack([solver.simulate(structure).spectra for structure in bar]).astype(np.float32)
    difference = require_orientation(samples.spectra, simulated, checked.order, checked.merged_greens)
    typer.echo(f"The solver's spectra of {len(simulated)} samples differ by {difference:.4f} (rms).")
    return simulated


def _read_device(given: str | None) -> Process:
    """The process that `--process` names, which is printed; no default stands in for a missing one."""
    if given is None:
        raise ValueError(
            f"give --process FILE, the process that was simulated, or --process {_DEFAULT} if it was: {_described(Process())}"
        )
    if given == _DEFAULT:
        typer.echo(f"The default process: {_described(Process())}.")
        return Process()
    if not Path(given).is_file():
        raise ValueError(f"--process must be a JSON file or the word {_DEFAULT}: there is no file {given}")
    return read_stated(Path(given))


def _described(process: Process) -> str:
    cell = f"a cell of {process.period_um:g} um with {process.pixels} x {process.pixels} pixels"
    low, high, step = process.wavelength_min_nm, process.wavelength_max_nm, process.wavelength_step_nm
    return (
        f"{process.solid.name} {process.thickness_um:g} um thick on {process.substrate.name}, {cell}, detectors "
        f"{process.distance_um:g} um below, {low:g} to {high:g} nm in steps of {step:g} nm"
    )
