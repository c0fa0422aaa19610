"""Verification: the designs of an optimiser, simulated, and compared with the surrogate's predictions.

An optimiser finds the structures for which a surrogate errs in the optimiser's favour, so predicted figures of merit are too
good more often than not. Each design is simulated on one or several grids. Simulations are kept in the run folder, in
`simulated/`, under names that hash everything they depend on: nothing is simulated twice, nothing stale is used.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from metaspec_contract.detectors import COLOURS, DETECTORS
from metaspec_contract.figures_of_merit import colour_efficiency, crosstalk
from metaspec_contract.files import replacing
from metaspec_contract.process import Process
from metaspec_contract.run_folder import ByColour, Merit, VerifiedDesign, VerifyReport
from metaspec_contract.structures import Structure, pack
from metaspec_simulation.data.designs import Designs, process_of_spectra
from metaspec_simulation.physics.solver import DECAY, Simulation, Solver

Floats = NDArray[np.floating]

_FIELDS = tuple(field.name for field in fields(Simulation))
_FOLDER = "simulated"


@dataclass(frozen=True)
class Task:
    """One design on one grid.

    Attributes:
        process: process to simulate.
        cells: the solver's grid cells per period.
        structure: the design, uint8 (128, 128).
        file: file where the simulation is kept.
    """

    process: Process
    cells: int
    structure: Structure
    file: Path

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


def tasks(designs: Designs, cells: list[int], best: int | None = None) -> list[list[Task]]:
    """The simulations of the best designs (all by default): for each design one task per grid, coarsest first.

    Raises:
        ValueError: the wavelengths of the predicted spectra are not evenly spaced.
    """
    process = process_of_spectra(designs)
    folder = designs.folder.absolute() / _FOLDER  # workers may run elsewhere
    folder.mkdir(exist_ok=True)

    def file(structure: Structure, grid: int) -> Path:
        recipe = (version("metaspec-lab"), process.model_dump_json(), str(grid), str(DECAY))
        digest = hashlib.sha256("\n".join(recipe).encode() + pack(structure).tobytes())
        return folder / f"{digest.hexdigest()[:16]}-{grid}.npz"

    grids = sorted(set(cells))
    return [[Task(process, grid, one, file(one, grid)) for grid in grids] for one in designs.structures[:best]]


@dataclass(frozen=True)
class Verification:
    """Predicted and simulated spectra of K designs, side by side.

    Attributes:
        designs: the optimiser's designs, of which the first K are compared.
        tasks: simulations they are compared with, for each design on each grid.
        cells: cells per period of the grids, (G,), coarsest first; the finest one is the reference.
        predicted: predicted spectra, float32 (K, 4, W).
        simulated: simulated spectra, float32 (G, K, 4, W).
        energy_error: rms over wavelengths of reflection + transmission - 1, (G, K).
    """

    designs: Designs
    tasks: list[list[Task]]
    cells: tuple[int, ...]
    predicted: NDArray[np.float32]
    simulated: NDArray[np.float32]
    energy_error: Floats

    @property
    def process(self) -> Process:
        """The simulated process, at the wavelengths of the spectra."""
        return self.tasks[0][0].process

    @property
    def wavelengths_nm(self) -> NDArray[np.float64]:
        """Wavelengths of the spectra in nm, (W,)."""
        return self.process.wavelengths_nm

    @property
    def ranks(self) -> list[int]:
        """The report's number for each compared design, (K,)."""
        return self.designs.ranks[: len(self.predicted)]

    @property
    def error(self) -> NDArray[np.float32]:
        """Predicted minus simulated efficiency, (K, 4, W)."""
        difference: NDArray[np.float32] = self.predicted - self.simulated[-1]
        return difference

    @property
    def grid_difference(self) -> NDArray[np.float32] | None:
        """Rms difference of each design's spectra on the two finest grids, (K,); None with one grid."""
        if len(self.cells) < 2:
            return None
        difference: NDArray[np.float32] = np.sqrt(((self.simulated[-1] - self.simulated[-2]) ** 2).mean(axis=(1, 2)))
        return difference

    def merit(self, spectra: NDArray[np.float32]) -> Floats:
        """Smallest colour efficiency, then red, green (G1 + G2) and blue: (..., K, 4, W) to (..., K, 4)."""
        colours = colour_efficiency(spectra, self.wavelengths_nm)
        return np.concatenate([colours.min(axis=-1, keepdims=True), colours], axis=-1)


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
    """A comparison as text: one line per design, and a summary."""
    predicted, simulated = result.merit(result.predicted), result.merit(result.simulated)
    coarser = [f"min ({cells})" for cells in result.cells[:-1]] + (["grids rms"] if len(result.cells) > 1 else [])
    groups = ["min efficiency"]
    groups += [f"{colour} = {' + '.join(of)}" if len(of := DETECTORS[colour]) > 1 else colour for colour in COLOURS]
    top = f"{'':4}" + "".join(f"  {name:^15}" for name in groups)
    head = f"{'rank':4}" + "  predict.  simul." * len(groups)
    head += "".join(f"{name:>10}" for name in ("MAE", "rms", "energy", *coarser))
    lines = [f"Simulated at {result.cells[-1]} cells per period.", "", top, head]
    mae, rms = np.abs(result.error).mean(axis=(1, 2)), np.sqrt((result.error**2).mean(axis=(1, 2)))
    apart = result.grid_difference
    for k, rank in enumerate(result.ranks):
        pairs = "".join(
            f"  {ours:8.4f} {theirs:6.4f}" for ours, theirs in zip(predicted[k], simulated[-1, k], strict=True)
        )
        numbers = [mae[k], rms[k], result.energy_error[-1, k], *simulated[:-1, k, 0]]
        numbers += [] if apart is None else [apart[k]]
        lines.append(f"{rank:4}{pairs}" + "".join(f"{number:10.4f}" for number in numbers))
    if result.designs.report.merged_greens:
        lines += ["", "The model knows only the mean of G1 and G2: MAE and rms include their difference."]
    return "\n".join([*lines, "", *_summary_lines(summary(result))])


def summary(result: Verification) -> dict[str, Any]:
    """Means over the designs, and which of them is the best one when simulated."""
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
        f"Min efficiency: predicted minus simulated is {gap['mean']:+.4f} on average, "
        f"{gap['mean_absolute']:.4f} in absolute value.",
    ]
    if correlation is not None:
        lines.append(f"Rank correlation of predicted and simulated min efficiency: {correlation:.2f}.")
    return lines


def as_report(result: Verification) -> VerifyReport:
    """A comparison as `verify.json` holds it."""
    apart = result.grid_difference
    designs = [
        VerifiedDesign(
            rank=rank,
            predicted=_merit(result.predicted[k], result.wavelengths_nm),
            simulated={
                str(cells): _merit(
                    result.simulated[g, k],
                    result.wavelengths_nm,
                    energy_error=float(result.energy_error[g, k]),
                    file=f"{_FOLDER}/{result.tasks[k][g].file.name}",
                )
                for g, cells in enumerate(result.cells)
            },
            mae=float(np.abs(result.error[k]).mean()),
            rms=float(np.sqrt((result.error[k] ** 2).mean())),
            grid_difference_rms=None if apart is None else float(apart[k]),
        )
        for k, rank in enumerate(result.ranks)
    ]
    report = result.designs.report
    return VerifyReport(
        model=report.model,
        model_version=report.model_version,
        objective=report.objective,
        solver={"name": "metaspec-fdtd", "version": version("metaspec-lab"), "cells": list(result.cells)},
        process=result.process,
        summary=summary(result),
        designs=designs,
    )


def _merit(spectra: NDArray[np.float32], wavelengths_nm: NDArray[np.float64], **simulated: Any) -> Merit:
    """Figures of merit of spectra (4, W), and what is known of their simulation."""

    def by_colour(values: Floats) -> ByColour:
        return ByColour(**dict(zip(COLOURS, values.tolist(), strict=True)))

    efficiency = colour_efficiency(spectra, wavelengths_nm)
    return Merit(
        min_efficiency=float(efficiency.min()),
        colour_efficiency=by_colour(efficiency),
        crosstalk=by_colour(crosstalk(spectra, wavelengths_nm)),
        **simulated,
    )
