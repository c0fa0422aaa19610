"""Accuracy of the solver against an independent method, and against itself on a finer grid.

Compares FDTD on several grids with FMMAX (rigorous coupled-wave analysis) in two formulations, at five wavelengths, and with
FDTD at 128 cells over all wavelengths, on five structures of different families. Prints a table and draws the spectra.
FMMAX's results are kept in OUT: the first run takes a quarter of an hour, later ones minutes.

python benchmarks/solver_accuracy.py --out runs/accuracy [--terms 600] [--cells 48 64 80]
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TypeAlias

import matplotlib
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from metaspec_contract.detectors import CHANNELS
from metaspec_contract.files import read_array, write_array
from metaspec_contract.process import Process
from metaspec_contract.structures import Structure
from metaspec_simulation import Solver
from metaspec_simulation.data.families import random_structure
from metaspec_testing.fmmax_reference import efficiencies

matplotlib.use("Agg")
from matplotlib import pyplot

STRUCTURES = (
    ("random_field", 101),
    ("random_field_diagonal", 102),
    ("rectangles", 103),
    ("pillars", 104),
    ("pillars_diagonal", 105),
)
WAVELENGTHS_NM = (410.0, 470.0, 530.0, 600.0, 680.0)
FORMULATIONS = ("FFT", "POL_FOURIER")
FINE = 128
LINES = ("tab:red", "tab:green", "yellowgreen", "tab:blue")
"""Line colours of R, G1, G2, B."""

Floats: TypeAlias = NDArray[np.floating]


def reference(structures: list[Structure], process: Process, formulation: str, terms: int, out: Path) -> Floats:
    """FMMAX's efficiencies, (structure, wavelength, channel)."""
    file = out / f"fmmax_{formulation}_{terms}.npy"
    if not file.exists():
        points = [(s, w) for s in structures for w in WAVELENGTHS_NM]
        solved = [efficiencies(s, process, w, terms, formulation) for s, w in tqdm(points, desc=f"FMMAX {formulation}")]
        write_array(file, np.array(solved).reshape(len(structures), len(WAVELENGTHS_NM), 4))
    return read_array(file)


def rms(error: Floats) -> float:
    return float(np.sqrt((error**2).mean()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--terms", type=int, default=600)
    parser.add_argument("--cells", type=int, nargs="+", default=[48, 64, 80])
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)

    process = Process()
    wavelengths = process.wavelengths_nm
    rows = [round((w - wavelengths[0]) / process.wavelength_step_nm) for w in WAVELENGTHS_NM]
    structures = [random_structure(np.random.default_rng(seed), family) for family, seed in STRUCTURES]
    rcwa = {f: reference(structures, process, f, arguments.terms, arguments.out) for f in FORMULATIONS}
    solved, seconds = {}, {}
    for cells in (*arguments.cells, FINE):
        solver = Solver(process, cells)
        solver.simulate(structures[0][::-1])  # compile, load caches
        started = time.perf_counter()
        solved[cells] = np.array([solver.simulate(s).spectra for s in structures])
        seconds[cells] = (time.perf_counter() - started) / len(structures)

    spread = rms(rcwa[FORMULATIONS[0]] - rcwa[FORMULATIONS[1]])
    print(f"FMMAX, {arguments.terms} terms: its two formulations are {spread:.4f} (rms) apart.\n")
    head = ["cells", *(f"from FMMAX {f}" for f in FORMULATIONS), "from their mean", f"from {FINE} cells", "s"]
    print("| " + " | ".join(head) + " |\n" + "|---" * len(head) + "|")
    for cells, spectra in solved.items():
        there = spectra[:, :, rows].transpose(0, 2, 1)
        errors = [*(rms(there - one) for one in rcwa.values()), rms(there - np.mean(list(rcwa.values()), axis=0))]
        fine = f"{rms(spectra - solved[FINE]):.4f}" if cells != FINE else ""
        print(f"| {cells} | " + " | ".join(f"{e:.4f}" for e in errors) + f" | {fine} | {seconds[cells]:.1f} |")

    figure, axes = pyplot.subplots(1, len(structures), figsize=(19, 4), sharey=True, layout="constrained")
    styles = dict(zip(solved, (":", "--", "-.", "-"), strict=False))
    for n, (one, (family, _)) in enumerate(zip(axes, STRUCTURES, strict=True)):
        for channel, colour in enumerate(LINES):
            for cells in (arguments.cells[0], arguments.cells[-1], FINE):
                label = f"{cells} cells" if channel == 0 else None
                one.plot(wavelengths, solved[cells][n, channel], styles[cells], color=colour, lw=1, label=label)
            for marker, (formulation, there) in zip("ox", rcwa.items(), strict=True):
                label = f"FMMAX {formulation}" if channel == 0 else None
                one.plot(WAVELENGTHS_NM, there[n, :, channel], marker, color=colour, mfc="none", label=label)
        one.set(title=family, xlabel="wavelength (nm)")
    axes[0].set_ylabel("efficiency of " + ", ".join(CHANNELS))
    axes[0].legend(fontsize=7)
    figure.savefig(arguments.out / "solver_accuracy.png", dpi=100)


if __name__ == "__main__":
    main()
