"""The truth check: designs of an optimiser, simulated, beside what the surrogate predicted for them.

An optimiser finds the structures for which a surrogate errs in the optimiser's favour, so predicted figures of merit are too
good more often than not. Each design is simulated on one or several grids. What a simulation tells is kept in the folder of the
designs, in `simulated/`, under a name that follows from all that it depends on: nothing is simulated twice, nothing stale used.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from metaspec_contract.detectors import COLOURS
from metaspec_contract.figures_of_merit import colour_efficiency, crosstalk
from metaspec_contract.process import Process
from metaspec_contract.structures import Structure, pack
from metaspec_simulation.designs import Designs, process_of_spectra
from metaspec_simulation.physics.solver import Simulation, Solver

SCHEMA_VERSION = 1

Floats = NDArray[np.floating]

_FIELDS = ("wavelengths_nm", "spectra", "harmonics", "reflection")


@dataclass(frozen=True)
class Task:
    """One design on one grid.

    Attributes:
        process: the device.
        cells: the solver's grid cells per period.
        structure: uint8 (128, 128).
        file: where the simulation is kept.
    """

    process: Process
    cells: int
    structure: Structure
    file: Path

    @property
    def done(self) -> Simulation | None:
        """What was simulated, or None where there is no whole file of it."""
        try:
            with np.load(self.file, allow_pickle=False) as kept:
                return Simulation(**{name: kept[name] for name in _FIELDS})
        except (OSError, ValueError, KeyError, EOFError, BadZipFile):
            return None

    def simulate(self, solver: Solver) -> None:
        """Simulate, and keep the result: the file appears when it is whole."""
        simulation = solver.simulate(self.structure)
        unfinished = self.file.with_name(f".{self.file.name}.{os.getpid()}")
        with unfinished.open("wb") as file:
            np.savez(file, **{name: getattr(simulation, name) for name in _FIELDS})
        unfinished.replace(self.file)


def tasks(designs: Designs, cells: list[int], best: int | None = None) -> list[list[Task]]:
    """What there is to simulate: for each of the best designs (all by default), one task for each grid, coarsest first.

    Raises:
        ValueError: the wavelengths of the predicted spectra are not evenly spaced.
    """
    process = process_of_spectra(designs)
    folder = designs.folder.absolute() / "simulated"  # workers may run elsewhere
    folder.mkdir(exist_ok=True)

    def file(structure: Structure, grid: int) -> Path:
        recipe = (version("metaspec"), process.model_dump_json(), str(grid))
        digest = hashlib.sha256("\n".join(recipe).encode() + pack(structure).tobytes())
        return folder / f"{digest.hexdigest()[:16]}-{grid}.npz"

    grids = sorted(set(cells))
    return [[Task(process, grid, one, file(one, grid)) for grid in grids] for one in designs.structures[:best]]


@dataclass(frozen=True)
class Verification:
    """Predicted and simulated spectra of K designs, side by side.

    Attributes:
        designs: of the optimiser, of which the first K are compared.
        tasks: simulations they are compared with, for each design on each grid.
        cells: the grids, (G,), coarsest first; the finest is taken for the truth.
        predicted: float32 (K, 4, W).
        simulated: float32 (G, K, 4, W).
        energy_error: rms over wavelengths of reflection + transmission - 1, (G, K).
    """

    designs: Designs
    tasks: list[list[Task]]
    cells: tuple[int, ...]
    predicted: NDArray[np.float32]
    simulated: NDArray[np.float32]
    energy_error: Floats

    @property
    def wavelengths_nm(self) -> NDArray[np.float64]:
        """Wavelengths of the spectra, (W,)."""
        return self.tasks[0][0].process.wavelengths_nm

    @property
    def ranks(self) -> list[int]:
        """By which number the report calls each design, (K,)."""
        return self.designs.ranks[: len(self.predicted)]

    @property
    def error(self) -> NDArray[np.float32]:
        """Predicted minus simulated efficiency, (K, 4, W)."""
        difference: NDArray[np.float32] = self.predicted - self.simulated[-1]
        return difference

    @property
    def grid_difference(self) -> NDArray[np.float32] | None:
        """How far apart the two finest grids are in each design's spectra (rms), (K,); None with one grid."""
        if len(self.cells) < 2:
            return None
        difference: NDArray[np.float32] = np.sqrt(((self.simulated[-1] - self.simulated[-2]) ** 2).mean(axis=(1, 2)))
        return difference

    def merit(self, spectra: NDArray[np.float32]) -> Floats:
        """Smallest colour efficiency, then red, green (G1 + G2) and blue: (..., K, 4, W) to (..., K, 4)."""
        flat = spectra.reshape(-1, *spectra.shape[-2:])
        colours = colour_efficiency(flat, self.wavelengths_nm)
        table = np.column_stack([colours.min(axis=1), colours])
        return table.reshape(*spectra.shape[:-2], table.shape[-1])


def compare(designs: Designs, todo: list[list[Task]]) -> Verification:
    """Compare designs with their simulations, all of which must be done.

    Raises:
        ValueError: a simulation is missing.
    """
    done = [[task.done for task in row] for row in todo]
    missing = sum(simulation is None for row in done for simulation in row)
    if missing:
        raise ValueError(f"{missing} simulations of {designs.folder} are missing")
    by_grid = [[one for one in column if one is not None] for column in zip(*done, strict=True)]
    return Verification(
        designs=designs,
        tasks=todo,
        cells=tuple(task.cells for task in todo[0]),
        predicted=designs.predicted[: len(todo)],
        simulated=np.array([[one.spectra for one in column] for column in by_grid]),
        energy_error=np.array([[np.sqrt(np.mean(one.energy_error**2)) for one in column] for column in by_grid]),
    )


def table(result: Verification) -> str:
    """What a person wants to know: a line for each design, and a summary."""
    predicted, simulated = result.merit(result.predicted), result.merit(result.simulated)
    coarser = [f"min ({cells})" for cells in result.cells[:-1]] + (["grids rms"] if len(result.cells) > 1 else [])
    groups = ("min efficiency", "R", "G = G1 + G2", "B")
    top = f"{'':4}" + "".join(f"  {name:^15}" for name in groups)
    head = f"{'rank':4}" + "  predict.  simul." * len(groups)
    head += "".join(f"{name:>10}" for name in ("MAE", "rms", "energy", *coarser))
    lines = [f"Simulated at {result.cells[-1]} cells a period.", "", top, head]
    mae, rms = np.abs(result.error).mean(axis=(1, 2)), np.sqrt((result.error**2).mean(axis=(1, 2)))
    apart = result.grid_difference
    for k, rank in enumerate(result.ranks):
        pairs = "".join(
            f"  {ours:8.4f} {theirs:6.4f}" for ours, theirs in zip(predicted[k], simulated[-1, k], strict=True)
        )
        numbers = [mae[k], rms[k], result.energy_error[-1, k], *simulated[:-1, k, 0]]
        numbers += [] if apart is None else [apart[k]]
        lines.append(f"{rank:4}{pairs}" + "".join(f"{number:10.4f}" for number in numbers))
    return "\n".join([*lines, "", *_summary_lines(summary(result))])


def summary(result: Verification) -> dict[str, Any]:
    """Means over the designs, and which of them is the best one really."""
    predicted, simulated = result.merit(result.predicted)[:, 0], result.merit(result.simulated[-1])[:, 0]
    best = int(simulated.argmax())
    gap = predicted - simulated
    ranked = len(gap) > 2 and np.ptp(predicted) > 0 and np.ptp(simulated) > 0
    return {
        "best": {
            "rank": result.ranks[best],
            "predicted": float(predicted[best]),
            "simulated": float(simulated[best]),
        },
        "mae": float(np.abs(result.error).mean()),
        "rms": float(np.sqrt((result.error**2).mean())),
        "min_efficiency_error": {"mean": float(gap.mean()), "mean_absolute": float(np.abs(gap).mean())},
        "rank_correlation": float(spearmanr(predicted, simulated).statistic) if ranked else None,
    }


def _summary_lines(numbers: dict[str, Any]) -> list[str]:
    best, gap, correlation = numbers["best"], numbers["min_efficiency_error"], numbers["rank_correlation"]
    lines = [
        f"Best when simulated: rank {best['rank']}, min efficiency {best['simulated']:.4f}, "
        f"predicted {best['predicted']:.4f}.",
        f"Spectra: mean absolute error {numbers['mae']:.4f}, rms {numbers['rms']:.4f}.",
        f"Min efficiency: predicted minus simulated is {gap['mean']:+.4f} on average, {gap['mean_absolute']:.4f} in size.",
    ]
    if correlation is not None:
        lines.append(f"Rank correlation of predicted and simulated min efficiency: {correlation:.2f}.")
    return lines


def as_json(result: Verification) -> dict[str, Any]:
    """All of a comparison as JSON. `predicted` and each grid of `simulated` have the fields of `predicted` in report.json."""
    process = result.tasks[0][0].process
    apart = result.grid_difference
    designs = []
    for k, rank in enumerate(result.ranks):
        grids = {}
        for g, cells in enumerate(result.cells):
            grids[str(cells)] = _figures(result.simulated[g, k], result.wavelengths_nm) | {
                "energy_error": float(result.energy_error[g, k]),
                "file": f"simulated/{result.tasks[k][g].file.name}",
            }
        design = {
            "rank": rank,
            "predicted": _figures(result.predicted[k], result.wavelengths_nm),
            "simulated": grids,
            "mae": float(np.abs(result.error[k]).mean()),
            "rms": float(np.sqrt((result.error[k] ** 2).mean())),
        }
        designs.append(design | ({} if apart is None else {"grid_difference_rms": float(apart[k])}))
    report = result.designs.report
    return {
        "schema_version": SCHEMA_VERSION,
        "model": report.model,
        "model_version": report.model_version,
        "objective": report.objective,
        "solver": {"name": "metaspec-fdtd", "version": version("metaspec"), "cells": list(result.cells)},
        "process": process.model_dump(mode="json"),
        "summary": summary(result),
        "designs": designs,
    }


def _figures(spectra: NDArray[np.float32], wavelengths_nm: NDArray[np.float64]) -> dict[str, Any]:
    """Figures of merit of spectra (4, W)."""

    def named(values: Floats) -> dict[str, float]:
        return dict(zip(COLOURS, values[0].tolist(), strict=True))

    colours = named(colour_efficiency(spectra[None], wavelengths_nm))
    return {
        "min_efficiency": min(colours.values()),
        "colour_efficiency": colours,
        "crosstalk": named(crosstalk(spectra[None], wavelengths_nm)),
    }
