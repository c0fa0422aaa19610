"""Simulations of an optimiser's designs, kept in the folder `simulated` of its run.

Their names hash everything that they depend on: nothing is simulated twice, nothing stale is used.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from metaspec_contract.files import replacing
from metaspec_contract.process import Process
from metaspec_contract.structures import pack
from metaspec_simulation.data.designs import Designs, process_of_spectra
from metaspec_simulation.physics.run import DECAY, LONGEST
from metaspec_simulation.physics.solver import Simulation, Solver

FOLDER = "simulated"
"""Folder of the simulations in a run folder."""

_FIELDS = tuple(field.name for field in fields(Simulation))


@dataclass(frozen=True)
class Task:
    """One design on one grid.

    Attributes:
        process: process to simulate.
        cells: the solver's grid cells per period.
        structure: the design, (y, x): binary, uint8, or with grey pixels, float32.
        folder: folder where simulations are kept.
    """

    process: Process
    cells: int
    structure: NDArray[Any]
    folder: Path

    @property
    def grey(self) -> bool:
        """Whether the design has grey pixels."""
        return self.structure.dtype.kind == "f"

    @property
    def thresholded(self) -> Task:
        """The task of the design thresholded at 1/2; of a binary design, the same task."""
        return replace(self, structure=(self.structure > 0.5).astype(np.uint8)) if self.grey else self

    @property
    def file(self) -> Path:
        """File where the simulation is kept."""
        settings = (version("metaspec-lab"), self.process.model_dump_json(), str(self.cells), str(DECAY), str(LONGEST))
        content = self.structure if self.grey else pack(self.structure)
        digest = hashlib.sha256("\n".join(settings).encode() + content.tobytes())
        return self.folder / f"{digest.hexdigest()[:16]}-{self.cells}.npz"

    @property
    def done(self) -> Simulation | None:
        """The simulation, or None where there is no whole file of it."""
        try:
            with np.load(self.file, allow_pickle=False) as kept:
                return Simulation(**{name: kept[name] for name in _FIELDS})
        except (OSError, ValueError, KeyError, EOFError, BadZipFile):
            return None

    def simulate(self, solver: Solver) -> None:
        """Simulate, and keep the result."""
        simulation = solver.simulate(self.structure)
        with replacing(self.file) as partial:
            np.savez(partial, **{name: getattr(simulation, name) for name in _FIELDS})


def tasks(designs: Designs, cells: Sequence[int], best: int | None = None) -> list[list[Task]]:
    """The best designs (all by default) on every grid: for each design one task per grid, coarsest first.

    A design that has a distance of its own is simulated at that.

    Raises:
        ValueError: the wavelengths of the predicted spectra are not evenly spaced.
    """
    process = process_of_spectra(designs)
    found: list[list[Task]] = []
    for structure, design in zip(designs.structures[:best], designs.report.designs, strict=False):
        device = process.at(design.conditions or {})
        found += tasks_of(structure[None], device, designs.folder, cells)
    return found


def tasks_of(densities: NDArray[Any], process: Process, folder: Path, cells: Sequence[int]) -> list[list[Task]]:
    """Structures on every grid, as for `tasks`.

    Args:
        densities: densities (N, y, x), grey or binary.
        process: process to simulate.
        folder: folder in which the folder of the simulations is created.
        cells: the solver's grid cells per period.
    """
    kept = folder.absolute() / FOLDER  # workers may run elsewhere
    kept.mkdir(exist_ok=True)
    structures = [one if _is_grey(one) else one.astype(np.uint8) for one in densities]
    return [[Task(process, grid, one, kept) for grid in sorted(set(cells))] for one in structures]


def simulations(todo: list[list[Task]]) -> list[Task]:
    """Everything to simulate for tasks, each once: the designs, and those with grey pixels thresholded as well."""
    return list({each.file: each for row in todo for task in row for each in (task, task.thresholded)}.values())


@dataclass(frozen=True)
class Simulated:
    """Simulated spectra of K designs on G grids.

    Attributes:
        spectra: efficiencies of R, G1, G2, B, float32 (G, K, 4, W).
        energy_error: rms over wavelengths of reflection + transmission - 1, (G, K).
    """

    spectra: NDArray[np.float32]
    energy_error: NDArray[np.floating]


def collect(todo: list[list[Task]]) -> tuple[Simulated, Simulated]:
    """The simulations of tasks, as the structures are and thresholded at 1/2; all must be done.

    Raises:
        ValueError: a simulation is missing.
    """
    done = {task.file: task.done for task in simulations(todo)}
    if missing := sum(simulation is None for simulation in done.values()):
        raise ValueError(f"{missing} simulations of {todo[0][0].folder.parent} are missing")

    def of(rows: list[list[Task]]) -> Simulated:
        by_grid = [
            [one for task in column if (one := done[task.file]) is not None] for column in zip(*rows, strict=True)
        ]
        return Simulated(
            spectra=np.array([[one.spectra for one in column] for column in by_grid]),
            energy_error=np.array([[np.sqrt(np.mean(one.energy_error**2)) for one in column] for column in by_grid]),
        )

    return of(todo), of([[task.thresholded for task in row] for row in todo])


def _is_grey(structure: NDArray[Any]) -> bool:
    return bool(((structure > 0) & (structure < 1)).any())
