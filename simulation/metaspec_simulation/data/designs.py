"""The designs of an optimiser: what `metaspec optimise` left in a run folder, for the simulation.

The files may come from another machine: all of them are checked before they are used.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metaspec_contract.detectors import CHANNELS
from metaspec_contract.files import read_array
from metaspec_contract.process import Process
from metaspec_contract.run_folder import DESIGNS, REPORT, SPECTRA, TRAJECTORY, RunReport, read_report
from metaspec_contract.structures import ROUNDING, Structure, as_density, check_binary, check_structures
from metaspec_simulation.data.families import distinct
from metaspec_simulation.data.levels import LEVELS, as_levels, as_structure


@dataclass(frozen=True)
class Designs:
    """The result of an optimisation.

    Attributes:
        folder: run folder.
        report: its `report.json`.
        structures: the designs, best first, (N, y, x): binary, uint8, if none is grey, otherwise densities, float32.
        predicted: spectra that the optimiser saw, predicted or, on a solver, simulated; R, G1, G2, B, float32 (N, 4, W).
        trajectory: structures visited on the way, uint8 (M, y, x); empty where there is no such file.
    """

    folder: Path
    report: RunReport
    structures: NDArray[Any]
    predicted: NDArray[np.float32]
    trajectory: Structure

    @property
    def process(self) -> Process:
        """Process to simulate: the caller's, else the report's."""
        return self.report.process

    @property
    def ranks(self) -> list[int]:
        """The report's number for each design."""
        return [design.rank for design in self.report.designs]

    @property
    def origin(self) -> str:
        """Where `predicted` comes from, in words: "predicted", or of a run on the solver, "optimised at 64 cells"."""
        report = self.report
        if not report.simulated:
            return "predicted"
        if re.match(r"\d+ cells", report.model_version):
            settings = (part for part in report.model_version.split(", ") if not part.startswith("metaspec-lab"))
            return f"optimised at {', '.join(settings)}"
        return f"optimised on {report.model} {report.model_version}"


def read_designs(folder: Path, process: Process | None = None) -> Designs:
    """Read and check the files of an optimisation.

    Args:
        folder: run folder of `metaspec optimise`.
        process: process to simulate, instead of the one that the report names.

    Raises:
        ValueError: a file is missing or damaged, or two of them contradict each other.
    """
    report = _read_report(folder, process)
    conditions = report.conditions_of(report.designs[0])
    if other := [name for name in conditions if name not in Process.model_fields]:
        raise ValueError(
            f"{folder / REPORT}: the designs were made at a condition that the solver does not have, {other[0]}"
        )
    structures = _read_structures(folder / DESIGNS, report.process.structure_shape)
    if len(structures) != len(report.designs):
        raise ValueError(f"{folder}: {DESIGNS} has {len(structures)} rows but {REPORT} lists {len(report.designs)}")
    spectra = read_array(folder / SPECTRA)
    shape = (len(structures), len(report.channels), len(report.wavelengths_nm))
    if spectra.shape != shape or spectra.dtype.kind != "f":
        raise ValueError(
            f"{folder / SPECTRA}: expected floats of shape {shape}, got {spectra.dtype} of shape {spectra.shape}"
        )
    if not np.isfinite(spectra).all():
        raise ValueError(f"{folder / SPECTRA} holds values that are not finite")
    trajectory = folder / TRAJECTORY
    return Designs(
        folder=folder,
        report=report,
        structures=structures,
        predicted=spectra[:, [report.channels.index(name) for name in CHANNELS]].astype(np.float32),
        trajectory=check_binary(read_array(trajectory), report.process.structure_shape, f"{trajectory}: structures")
        if trajectory.exists()
        else structures[:0],
    )


def _read_structures(file: Path, pixels: tuple[int, int]) -> NDArray[Any]:
    """Structures of a file: binary, uint8, if none is grey, otherwise densities, float32.

    Densities within `ROUNDING` of 0 or 1 are 0 or 1: a steep projection does not reach them.
    """
    density = as_density(check_structures(read_array(file), pixels, f"{file}: structures")[:, 0])
    nearest = np.rint(density)
    grey = np.abs(density - nearest) > ROUNDING
    return np.where(grey, density, nearest) if grey.any() else nearest.astype(np.uint8)


def process_of_spectra(designs: Designs) -> Process:
    """The process at the wavelengths of the predicted spectra.

    Raises:
        ValueError: they are not evenly spaced.
    """
    wavelengths = np.array(designs.report.wavelengths_nm)
    step = (wavelengths[-1] - wavelengths[0]) / (len(wavelengths) - 1)
    if step <= 0 or not np.allclose(np.diff(wavelengths), step, rtol=0, atol=1e-3):
        raise ValueError(f"{designs.folder / REPORT}: wavelengths_nm must ascend in equal steps")
    band = {
        "wavelength_min_nm": wavelengths[0],
        "wavelength_max_nm": wavelengths[-1],
        "wavelength_step_nm": step,
    }
    return Process.model_validate(designs.process.model_dump() | band)


def candidates(results: list[Designs], limit: int | None = None) -> NDArray[Any]:
    """Structures worth simulating: all designs, then what was visited on the way to them, without symmetric copies.

    Grey designs are rounded to the levels of a data set, multiples of 1/255.

    Args:
        results: several optimisations.
        limit: largest number of structures: designs first, then structures of the trajectories, evenly spaced over them.
            The choice does not depend on what has been simulated: the same call makes the same choice.

    Returns:
        Distinct structures, (N, y, x): binary, uint8, if none is grey, otherwise densities, float32.
    """
    ends = np.concatenate([as_levels(one.structures) for one in results])
    levels = np.concatenate([ends, *(np.uint8(LEVELS) * one.trajectory for one in results)])
    rows = distinct(as_structure(one) for one in levels)
    if limit is not None and len(rows) > limit:
        first, visited = rows[rows < len(ends)][:limit], rows[rows >= len(ends)]
        picked = np.linspace(0, len(visited) - 1, limit - len(first)).round().astype(int)
        rows = np.concatenate([first, visited[picked]])
    return as_structure(levels[rows])


def _read_report(folder: Path, process: Process | None) -> RunReport:
    """Read the report; if only its process is invalid, the message names `--process`."""
    try:
        return read_report(folder, process)
    except ValueError as error:
        if process is None and _is_valid(folder, Process()):
            raise ValueError(f"{error}. Give --process FILE to say what to simulate") from None
        raise


def _is_valid(folder: Path, process: Process) -> bool:
    try:
        read_report(folder, process)
    except ValueError:
        return False
    return True
