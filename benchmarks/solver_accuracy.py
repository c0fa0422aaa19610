"""How far is the solver from an independent method? FDTD on several grids against FMMAX (RCWA) on four structures.

python benchmarks/solver_accuracy.py [--terms 401] [--cells 48 64 80]
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "simulation"))
from fmmax_reference import efficiencies
from metaspec_simulation import Process, Solver
from metaspec_simulation.structures import random_structure

STRUCTURES = (("random_field", 1), ("pillars", 2), ("rectangles", 3), ("random_field_diagonal", 5))
WAVELENGTHS_NM = (430.0, 530.0, 640.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--terms", type=int, default=401)
    parser.add_argument("--cells", type=int, nargs="+", default=[48, 64, 80])
    arguments = parser.parse_args()

    process = Process()
    structures = [random_structure(np.random.default_rng(seed), family) for family, seed in STRUCTURES]
    reference = np.array([[efficiencies(s, process, w, arguments.terms) for w in WAVELENGTHS_NM] for s in structures])
    rows = [round((w - process.wavelength_min_nm) / process.wavelength_step_nm) for w in WAVELENGTHS_NM]

    print(f"rms difference of the efficiencies from FMMAX with {arguments.terms} terms, at {WAVELENGTHS_NM} nm\n")
    print("| cells | " + " | ".join(family for family, _ in STRUCTURES) + " | all | s per structure |")
    print("|---" * (len(STRUCTURES) + 3) + "|")
    for cells in arguments.cells:
        solver = Solver(process, cells)
        started = time.perf_counter()
        solved = np.array([solver.simulate(s).spectra[:, rows].T for s in structures])
        seconds = (time.perf_counter() - started) / len(structures)
        error = (solved - reference) ** 2
        numbers = [*np.sqrt(error.mean(axis=(1, 2))), np.sqrt(error.mean())]
        print(f"| {cells} | " + " | ".join(f"{value:.4f}" for value in numbers) + f" | {seconds:.1f} |", flush=True)


if __name__ == "__main__":
    main()
