"""Verification: the designs of an optimiser, simulated, and compared with the spectra that the optimiser saw.

An optimiser finds the structures for which a surrogate errs in the optimiser's favour, so predicted figures of merit are too
good more often than not. Each design is simulated on one or several grids. A design with grey pixels cannot be made: it is
simulated as it is and thresholded at 1/2, which says what its grey rest is worth.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from metaspec_contract.detectors import COLOURS, DETECTORS
from metaspec_contract.figures_of_merit import colour_efficiency, covered_colours
from metaspec_contract.process import Process
from metaspec_contract.run_folder import Merit, VerifiedDesign, VerifyReport
from metaspec_simulation.data.designs import Designs, process_of_spectra
from metaspec_simulation.simulated import FOLDER, Simulated, Task, collect

Floats = NDArray[np.floating]


@dataclass(frozen=True)
class Verification:
    """Spectra of K designs as the optimiser saw them and simulated, side by side.

    Attributes:
        designs: the optimiser's designs, of which the first K are compared.
        tasks: simulations they are compared with, for each design on each grid.
        cells: cells per period of the grids, (G,), coarsest first; the finest one is the reference.
        predicted: spectra that the optimiser saw, predicted or simulated, float32 (K, 4, W).
        simulated: the designs, simulated as they are.
        thresholded: the designs, simulated after thresholding at 1/2; the same where they are binary.
    """

    designs: Designs
    tasks: list[list[Task]]
    cells: tuple[int, ...]
    predicted: NDArray[np.float32]
    simulated: Simulated
    thresholded: Simulated

    @property
    def process(self) -> Process:
        """The simulated process, at the wavelengths of the spectra; designs with a distance of their own are at that."""
        return process_of_spectra(self.designs)

    @property
    def wavelengths_nm(self) -> NDArray[np.float64]:
        """Wavelengths of the spectra in nm, (W,)."""
        return self.process.wavelengths_nm

    @property
    def ranks(self) -> list[int]:
        """The report's number for each compared design, (K,)."""
        return self.designs.ranks[: len(self.predicted)]

    @property
    def conditions(self) -> list[dict[str, float]]:
        """Conditions of which each compared design has its own value, (K,)."""
        return [design.conditions or {} for design in self.designs.report.designs[: len(self.predicted)]]

    @property
    def error(self) -> NDArray[np.float32]:
        """Efficiency that the optimiser saw minus simulated efficiency, (K, 4, W)."""
        difference: NDArray[np.float32] = self.predicted - self.simulated.spectra[-1]
        return difference

    @property
    def grid_difference(self) -> NDArray[np.float32] | None:
        """Rms difference of each design's spectra on the two finest grids, (K,); None with one grid."""
        if len(self.cells) < 2:
            return None
        coarser, finest = self.simulated.spectra[-2:]
        difference: NDArray[np.float32] = np.sqrt(((finest - coarser) ** 2).mean(axis=(1, 2)))
        return difference

    @property
    def grey(self) -> NDArray[np.bool_]:
        """Which designs have grey pixels, (K,)."""
        return np.array([row[0].grey for row in self.tasks])

    @property
    def non_discreteness(self) -> Floats:
        """Mean of 4 d (1 - d) over the pixels' densities d, (K,): 0 for a binary design, 1 where all pixels are 1/2.

        It is the measure of O. Sigmund, Struct. Multidiscip. Optim. 33, 401 (2007).
        """
        densities = [row[0].structure.astype(np.float64) for row in self.tasks]
        return np.array([np.mean(4 * density * (1 - density)) for density in densities])

    @property
    def merits(self) -> tuple[str, ...]:
        """Figures of merit: "min", the smallest colour efficiency, then those of "R", "G" (G1 + G2) and "B".

        Colours whose band the wavelengths do not reach are left out, and then so is "min".
        """
        covered = covered_colours(self.wavelengths_nm)
        return ("min", *covered) if covered == COLOURS else covered

    def merit(self, spectra: NDArray[np.float32]) -> Floats:
        """The figures of merit `merits`: (..., K, 4, W) to (..., K, merits)."""
        colours = colour_efficiency(spectra, self.wavelengths_nm, colours=covered_colours(self.wavelengths_nm))
        if "min" not in self.merits:
            return colours
        return np.concatenate([colours.min(axis=-1, keepdims=True), colours], axis=-1)


def compare(designs: Designs, todo: list[list[Task]]) -> Verification:
    """Compare designs with their simulations, all of which must be done.

    Raises:
        ValueError: a simulation is missing.
    """
    simulated, thresholded = collect(todo)
    return Verification(
        designs=designs,
        tasks=todo,
        cells=tuple(task.cells for task in todo[0]),
        predicted=designs.predicted[: len(todo)],
        simulated=simulated,
        thresholded=thresholded,
    )


def table(result: Verification) -> str:
    """A comparison as text: one line per design, and a summary."""
    predicted, simulated = result.merit(result.predicted), result.merit(result.simulated.spectra)
    on_solver = result.designs.report.simulated
    titles = {
        "min": "min efficiency",
        **{colour: colour for colour in COLOURS},
        "G": f"G = {' + '.join(DETECTORS['G'])}",
    }
    groups, ranked = [titles[name] for name in result.merits], "min" in result.merits
    columns = {name: np.array([one[name] for one in result.conditions]) for name in result.conditions[0]}
    columns |= {
        "MAE": np.abs(result.error).mean(axis=(1, 2)),
        "rms": np.sqrt((result.error**2).mean(axis=(1, 2))),
        "energy": result.simulated.energy_error[-1],
    }
    if ranked:
        columns |= {f"min ({cells})": simulated[g, :, 0] for g, cells in enumerate(result.cells[:-1])}
    if (apart := result.grid_difference) is not None:
        columns["grids rms"] = apart
    notes = []
    if on_solver:
        notes.append(f"optim.: {result.designs.origin}; MAE and rms are differences from that.")
    if result.designs.report.merged_greens:
        notes.append("The model knows only the mean of G1 and G2: MAE and rms include their difference.")
    if result.grey.any():
        columns["grey"] = result.non_discreteness
        note = "grey: mean of 4 d (1 - d) over the pixels' densities d"
        if ranked:
            thresholded = result.merit(result.thresholded.spectra)[..., 0]
            columns["min, 1/2"] = thresholded[-1]
            columns |= {f"1/2 ({cells})": thresholded[g] for g, cells in enumerate(result.cells[:-1])}
            note += "; min, 1/2: min efficiency thresholded at 1/2"
        notes.append(f"{note}.")
    top = f"{'':4}" + "".join(f"  {name:^15}" for name in groups)
    head = f"{'rank':4}" + ("   optim.  simul." if on_solver else "  predict.  simul.") * len(groups)
    widths = {name: max(10, len(name) + 1) for name in columns}
    head += "".join(f"{name:>{width}}" for name, width in widths.items())
    lines = [f"Simulated at {result.cells[-1]} cells per period.", "", top, head]
    for k, rank in enumerate(result.ranks):
        pairs = "".join(
            f"  {ours:8.4f} {theirs:6.4f}" for ours, theirs in zip(predicted[k], simulated[-1, k], strict=True)
        )
        lines.append(f"{rank:4}{pairs}" + "".join(f"{columns[name][k]:{width}.4f}" for name, width in widths.items()))
    lines += ["", *notes] if notes else []
    return "\n".join([*lines, "", *_summary_lines(result)])


def summary(result: Verification) -> dict[str, Any]:
    """Means over the designs, and which of them is the best one when simulated, if all three colours have an efficiency."""
    spectra = {"mae": float(np.abs(result.error).mean()), "rms": float(np.sqrt((result.error**2).mean()))}
    if "min" not in result.merits:
        return spectra
    predicted, simulated = result.merit(result.predicted)[:, 0], result.merit(result.simulated.spectra[-1])[:, 0]
    best = int(simulated.argmax())
    gap = predicted - simulated
    ranked = len(gap) > 2 and np.ptp(predicted) > 0 and np.ptp(simulated) > 0
    numbers = {
        "best": {
            "rank": result.ranks[best],
            "predicted": float(predicted[best]),
            "simulated": float(simulated[best]),
        },
        **spectra,
        "min_efficiency_error": {"mean": float(gap.mean()), "mean_absolute": float(np.abs(gap).mean())},
        "rank_correlation": float(spearmanr(predicted, simulated).statistic) if ranked else None,
    }
    return numbers | ({"grey": _summary_of_grey(result)} if result.grey.any() else {})


def _summary_of_grey(result: Verification) -> dict[str, Any]:
    """What the grey rest of the designs is worth."""
    grey = result.grey
    density, thresholded = (result.merit(one.spectra)[-1, :, 0] for one in (result.simulated, result.thresholded))
    best, change = int(thresholded.argmax()), (thresholded - density)[grey]
    return {
        "designs": int(grey.sum()),
        "non_discreteness": float(result.non_discreteness[grey].mean()),
        "min_efficiency_change": {"mean": float(change.mean()), "lowest": float(change.min())},
        "best_thresholded": {"rank": result.ranks[best], "simulated": float(thresholded[best])},
    }


def _summary_lines(result: Verification) -> list[str]:
    numbers, origin = summary(result), result.designs.origin
    spectra = f"mean absolute difference {numbers['mae']:.4f}, rms {numbers['rms']:.4f}"
    lines = [f"Spectra, {origin} against simulated: {spectra}."]
    if "best" not in numbers:
        return lines
    best, gap, correlation = numbers["best"], numbers["min_efficiency_error"], numbers["rank_correlation"]
    lines = [
        f"Best when simulated: rank {best['rank']}, min efficiency {best['simulated']:.4f} "
        f"({origin}: {best['predicted']:.4f}).",
        *lines,
        f"Min efficiency: {origin} minus simulated is {gap['mean']:+.4f} on average, "
        f"{gap['mean_absolute']:.4f} in absolute value.",
    ]
    if correlation is not None:
        lines.append(f"Rank correlation of min efficiency, {origin} and simulated: {correlation:.2f}.")
    if grey := numbers.get("grey"):
        count, change, black_white = grey["designs"], grey["min_efficiency_change"], grey["best_thresholded"]
        lines.append(
            f"Grey: {count} of {len(result.ranks)} designs, non-discreteness {grey['non_discreteness']:.4f} on average. "
            f"Thresholding at 1/2 changes their min efficiency by {change['mean']:+.4f} on average, {change['lowest']:+.4f} at "
            f"worst; best then: rank {black_white['rank']}, {black_white['simulated']:.4f}."
        )
    return lines


def as_report(result: Verification) -> VerifyReport:
    """A comparison as `verify.json` holds it."""
    apart, grey, non_discreteness = result.grid_difference, result.grey, result.non_discreteness

    def by_grid(simulated: Simulated, k: int, row: list[Task]) -> dict[str, Merit]:
        return {
            str(task.cells): Merit.of(
                simulated.spectra[g, k],
                result.wavelengths_nm,
                energy_error=float(simulated.energy_error[g, k]),
                file=f"{FOLDER}/{task.file.name}",
            )
            for g, task in enumerate(row)
        }

    designs = [
        VerifiedDesign(
            rank=rank,
            conditions=result.conditions[k] or None,
            predicted=Merit.of(result.predicted[k], result.wavelengths_nm),
            simulated=by_grid(result.simulated, k, result.tasks[k]),
            non_discreteness=float(non_discreteness[k]) if grey[k] else None,
            thresholded=by_grid(result.thresholded, k, [task.thresholded for task in result.tasks[k]])
            if grey[k]
            else None,
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
