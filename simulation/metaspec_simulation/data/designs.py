"""The designs of an optimiser: what `metaspec optimise` left in a run folder, for the simulation.

The files may come from another machine: all of them are checked before they are used.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from metaspec_contract.detectors import CHANNELS
from metaspec_contract.files import read_array
from metaspec_contract.process import Process
from metaspec_contract.run_folder import DESIGNS, REPORT, SPECTRA, TRAJECTORY, RunReport, read_report
from metaspec_contract.structures import Structure, check_binary
from metaspec_simulation.data.families import distinct


@dataclass(frozen=True)
class Designs:
    """The result of an optimisation.

    Attributes:
        folder: run folder.
        report: its `report.json`.
        structures: the designs, best first, uint8 (N, 128, 128).
        predicted: their predicted spectra, R, G1, G2, B, float32 (N, 4, W).
        trajectory: structures visited on the way, uint8 (M, 128, 128); empty where there is no such file.
    """

    folder: Path
    report: RunReport
    structures: Structure
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


def read_designs(folder: Path, process: Process | None = None) -> Designs:
    """Read and check the files of an optimisation.

    Args:
        folder: run folder of `metaspec optimise`.
        process: process to simulate, instead of the one that the report names.

    Raises:
        ValueError: a file is missing or damaged, or two of them contradict each other.
    """
    report = _read_report(folder, process)
    structures = check_binary(read_array(folder / DESIGNS), name=f"{folder / DESIGNS}: structures")
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
        trajectory=check_binary(read_array(trajectory), name=f"{trajectory}: structures")
        if trajectory.exists()
        else structures[:0],
    )


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


def candidates(results: list[Designs], limit: int | None = None) -> Structure:
    """Structures worth simulating: all designs, then what was visited on the way to them, without symmetric copies.

    Args:
        results: several optimisations.
        limit: largest number of structures: designs first, then structures of the trajectories, evenly spaced over them.
            The choice does not depend on what has been simulated: the same call makes the same choice.

    Returns:
        Distinct structures, uint8 (N, 128, 128).
    """
    ends = np.concatenate([one.structures for one in results])
    everything = np.concatenate([ends, *(one.trajectory for one in results)])
    rows = distinct(everything)
    if limit is not None and len(rows) > limit:
        first, visited = rows[rows < len(ends)][:limit], rows[rows >= len(ends)]
        picked = np.linspace(0, len(visited) - 1, limit - len(first)).round().astype(int)
        rows = np.concatenate([first, visited[picked]])
    return everything[rows]


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
