"""Structures of any files, simulated: GDSII layouts, pictures, arrays of any grid, designs of invrs-gym."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metaspec_contract.detectors import COLOURS
from metaspec_contract.drawings import read_drawing
from metaspec_contract.files import write_array, write_json
from metaspec_contract.gdsii import Layer
from metaspec_contract.process import Process
from metaspec_contract.report_page import number
from metaspec_contract.run_folder import DESIGNS, REPORT, SPECTRA, VERIFY, Merit, VerifiedDesign, VerifyReport
from metaspec_simulation.simulated import FOLDER, Simulated, Task, collect, tasks_of

_SHOWN = 24  # characters of a name in the table, at least


@dataclass(frozen=True)
class Structures:
    """Structures of files, on the pixels of a process.

    Attributes:
        density: densities, float32 (N, y, x).
        names: file of each, with its row where the file holds several.
        remarks: a line for each file, on what became of it.
    """

    density: NDArray[np.float32]
    names: list[str]
    remarks: list[str]

    def first(self, count: int | None) -> Structures:
        """The first structures; all for None."""
        return replace(self, density=self.density[:count], names=self.names[:count])


def read_structures(files: Sequence[Path], process: Process, cell: str | None, layer: Layer) -> Structures:
    """Read the structures of files.

    Args:
        files: paths of the files.
        process: process to simulate, whose period layouts must have.
        cell: name of the cell of layouts; by default the only one that no other cell refers to.
        layer: layer and datatype of the solid in layouts.

    Raises:
        ValueError: a file cannot be read, or is not for this process.
        ImportError: a package is missing.
    """
    densities, names, remarks = [], [], []
    for file, title in zip(files, _titles(files), strict=True):
        drawing = read_drawing(file, cell=cell, layer=layer)
        found = drawing.densities(process)
        grey = ((found > 0) & (found < 1)).mean()
        said = [drawing.remark(process), f"{100 * found.mean():.1f} % solid"]
        said += [f"{100 * grey:.2g} % of the pixels are solid in part"] if grey else []
        remarks.append(f"{file}: {', '.join(part for part in said if part)}.")
        names += [title] if len(found) == 1 else [f"{title}[{row}]" for row in range(len(found))]
        densities.append(found)
    return Structures(np.concatenate(densities), names, remarks)


def _titles(files: Sequence[Path]) -> list[str]:
    """Names of files, with as many of the folders above as tell them apart."""
    paths = [file.resolve() for file in files]
    for path in paths:
        if paths.count(path) > 1:
            raise ValueError(f"{path} is given twice")
    longest = max(len(path.parts) for path in paths)
    for count in range(1, longest + 1):
        titles = ["/".join(path.parts[-count:]) for path in paths]
        if len(set(titles)) == len(titles):
            break
    return titles


def check_folder(folder: Path, files: Sequence[Path]) -> None:
    """Raise ValueError unless a folder for results is new, or holds results of these files only."""
    known = {DESIGNS, SPECTRA, VERIFY, FOLDER}
    if folder.exists() and (not folder.is_dir() or {path.name for path in folder.iterdir()} - known):
        kind = "a run folder" if (folder / REPORT).exists() else "not a folder of verified structures"
        raise ValueError(f"{folder} is {kind}: give another one with --out")
    if (folder / VERIFY).exists():
        try:
            sources = [one["source"] for one in json.loads((folder / VERIFY).read_text(encoding="utf-8"))["designs"]]
            known = {re.sub(r"\[\d+\]$", "", source) for source in sources}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{folder / VERIFY} cannot be read: {error!r}: give another folder with --out") from None
        if others := known - set(_titles(files)):
            raise ValueError(f"{folder} holds the results of {', '.join(sorted(others))}: give another one with --out")


def structure_tasks(structures: Structures, process: Process, folder: Path, cells: Sequence[int]) -> list[list[Task]]:
    """What to simulate: for each structure one task per grid, coarsest first. Creates the folder of the simulations."""
    folder.mkdir(parents=True, exist_ok=True)
    return tasks_of(structures.density, process, folder, cells)


def write_results(structures: Structures, todo: list[list[Task]], folder: Path) -> str:
    """Write `verify.json`, `designs.npy` and `spectra.npy`, all of whose simulations must be done.

    Returns:
        A table of the efficiencies.
    """
    simulated, thresholded = collect(todo)
    wavelengths, cells = todo[0][0].process.wavelengths_nm, [task.cells for task in todo[0]]

    def merits(one: Simulated, k: int, row: list[Task]) -> dict[str, Merit]:
        return {
            str(task.cells): Merit.of(
                one.spectra[g, k],
                wavelengths,
                energy_error=float(one.energy_error[g, k]),
                file=f"{FOLDER}/{task.file.name}",
            )
            for g, task in enumerate(row)
        }

    designs = [
        VerifiedDesign(
            rank=k,
            source=name,
            simulated=merits(simulated, k, row),
            non_discreteness=float(np.mean(4 * structures.density[k] * (1 - structures.density[k])))
            if row[0].grey
            else None,
            thresholded=merits(thresholded, k, [task.thresholded for task in row]) if row[0].grey else None,
            grid_difference_rms=float(np.sqrt(((simulated.spectra[-1, k] - simulated.spectra[-2, k]) ** 2).mean()))
            if len(cells) > 1
            else None,
        )
        for k, (name, row) in enumerate(zip(structures.names, todo, strict=True))
    ]
    report = VerifyReport(
        solver={"name": "metaspec-fdtd", "version": version("metaspec-lab"), "cells": [*cells]},
        process=todo[0][0].process,
        summary={},
        designs=designs,
    )
    write_array(folder / DESIGNS, structures.density)
    write_array(folder / SPECTRA, simulated.spectra[-1])
    write_json(folder / VERIFY, report.model_dump(mode="json", exclude_none=True))
    return _table(report)


def _table(report: VerifyReport) -> str:
    """One line for each structure and grid: efficiencies, crosstalk, energy error."""
    widest = max(_SHOWN, *(len(design.source or "") + len(", at 1/2") + 1 for design in report.designs))
    head = f"{'structure':{widest}}{'cells':>6}{'min':>9}" + "".join(f"{colour:>9}" for colour in COLOURS)
    lines = [head + f"{'crosstalk R, G, B':>24}{'energy':>9}"]
    for design in report.designs:
        forms: list[tuple[str, dict[str, Any]]] = [("", dict(design.simulated))]
        forms += [(", at 1/2", dict(design.thresholded))] if design.thresholded else []
        for form, grids in forms:
            name = (design.source or "") + form
            for cells, merit in grids.items():
                colours = [getattr(merit.colour_efficiency, colour) for colour in COLOURS]
                crosstalk = ", ".join(number(getattr(merit.crosstalk, colour)) for colour in COLOURS)
                values = "".join(f"{number(value):>9}" for value in (merit.min_efficiency, *colours))
                lines.append(f"{name:{widest}}{cells:>6}{values}{crosstalk:>24}{merit.energy_error:9.4f}")
    lines += ["", "G = G1 + G2; energy: rms over wavelengths of reflection + transmission - 1."]
    if any(design.thresholded for design in report.designs):
        lines.append("at 1/2: the structure thresholded, without pixels that are solid in part.")
    return "\n".join(lines)
