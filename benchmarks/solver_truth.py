"""How much light the solver loses, and what its gradient costs.

Simulates structures that are hard for it (dense, regular, narrow lines) at several bounds on the light that is left in the
grid, and prints the energy error (rms over wavelength of reflection + transmission - 1), the length of the run, its time, and
the rms difference of the spectra from those of the tightest bound. Then times the gradient against the simulation, side by
side, unless it is told not to.

python benchmarks/solver_truth.py [--cells 80] [--decay 1e-3 1e-4 1e-5 1e-6] [--threads 2] [--no-gradient]
    [--out FILE.json]
"""

from __future__ import annotations

import argparse
import resource
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from metaspec_contract.files import write_json
from metaspec_contract.process import Process
from metaspec_contract.structures import Structure
from metaspec_simulation import Solver
from metaspec_simulation.data.families import random_structure
from metaspec_testing.hard_structures import hard_structures

ROOT = Path(__file__).parents[1]


def structures() -> dict[str, Structure]:
    """Structures by name, uint8 (128, 128)."""
    found = hard_structures()
    found["router"] = np.load(ROOT / "docs" / "design" / "router.npy")
    found["random field"] = random_structure(np.random.default_rng(101), "random_field")
    found["pillars"] = random_structure(np.random.default_rng(104), "pillars")
    return found


def time_gradient(cells: int, threads: int) -> dict[str, float]:
    """Time of the gradient in simulations, side by side, and the peak memory of the process in GiB."""
    solver, structure = Solver(Process(), cells, threads=threads), structures()["random field"]
    cotangent = np.ones((4, 301))
    solver.gradient(structure, cotangent)
    times: dict[str, list[float]] = {"simulation": [], "gradient": []}
    for _ in range(3):
        start = time.perf_counter()
        solver.simulate(structure)
        between = time.perf_counter()
        solver.gradient(structure, cotangent)
        times["simulation"].append(between - start)
        times["gradient"].append(time.perf_counter() - between)
    ratio = float(np.median(times["gradient"]) / np.median(times["simulation"]))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"\nRandom field, {threads} threads: simulation {np.median(times['simulation']):.2f} s, "
        f"gradient {ratio:.2f} times that, peak memory {peak:.2f} GiB"
    )
    return {"gradient_ratio": ratio, "peak_gib": peak}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=80, help="grid cells per period")
    parser.add_argument("--decay", type=float, nargs="+", default=[1e-3, 1e-4, 1e-5, 1e-6], help="bounds to compare")
    parser.add_argument("--threads", type=int, default=2, help="threads of the solver")
    parser.add_argument("--no-gradient", dest="gradient", action="store_false", help="do not time the gradient")
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    arguments = parser.parse_args()
    bounds = sorted(arguments.decay)
    solvers = {bound: Solver(Process(), arguments.cells, bound, threads=arguments.threads) for bound in bounds}
    solvers[bounds[0]].simulate(np.eye(128) > 0)  # compiles
    print(f"{arguments.cells} cells per period\n{'structure':24}{'fill':>6}", end="")
    print("".join(f"{bound:>12.0e}: energy, length, s, rms" for bound in bounds[::-1]))
    rows = {}
    for name, structure in structures().items():
        found = {}
        exact: NDArray[np.float32] | None = None
        for bound in bounds:
            start = time.perf_counter()
            simulation = solvers[bound].simulate(structure)
            seconds = time.perf_counter() - start
            exact = simulation.spectra if exact is None else exact
            found[bound] = {
                "energy_error": float(np.sqrt(np.mean(simulation.energy_error**2))),
                "largest_energy_error": float(np.abs(simulation.energy_error).max()),
                "duration": simulation.duration,
                "seconds": seconds,
                "rms": float(np.sqrt(np.mean((simulation.spectra - exact) ** 2))),
            }
        rows[name] = {"fill": float(structure.mean()), "bounds": {f"{bound:.0e}": found[bound] for bound in bounds}}
        columns = [found[bound] for bound in bounds[::-1]]
        cells = [f"{c['energy_error']:19.4f}{c['duration']:8.0f}{c['seconds']:6.1f}{c['rms']:9.5f}" for c in columns]
        print(f"{name:24}{structure.mean():6.2f}{''.join(cells)}", flush=True)

    document: dict[str, object] = {"cells": arguments.cells, "rows": rows}
    if arguments.gradient:
        document |= time_gradient(arguments.cells, arguments.threads)
    if arguments.out:
        write_json(arguments.out, document)


if __name__ == "__main__":
    main()
