"""Accuracy of the solver against an independent method, and against itself on a finer grid.

Compares FDTD on several grids with FMMAX (rigorous coupled-wave analysis) in two formulations: five structures of different
families at five wavelengths; dense and regular structures, those with a short period at 16 wavelengths; and two structures
at nine wavelengths within 3 nm of a diffraction cut-off, where spectra have kinks. The families are compared with FDTD at
128 cells, too. Prints tables and draws the spectra. `--convergence` states the error of FMMAX instead: how far a quarter and
half of the terms are from all. Results are kept in OUT, and the same command resumes; delete it after a change of the solver.

python benchmarks/solver_accuracy.py --out runs/accuracy [--terms 400] [--cells 48 64 80] [--fine 128] [--convergence]
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray
from tqdm import tqdm

from metaspec_contract.detectors import CHANNELS
from metaspec_contract.files import read_array, write_array
from metaspec_contract.process import Process
from metaspec_contract.structures import Structure
from metaspec_simulation import Solver
from metaspec_simulation.data.families import random_structure
from metaspec_testing.fmmax_reference import efficiencies, repeating_cell
from metaspec_testing.hard_structures import hard_structures

matplotlib.use("Agg")
from matplotlib import pyplot

FAMILIES = (
    ("random_field", 101),
    ("random_field_diagonal", 102),
    ("rectangles", 103),
    ("pillars", 104),
    ("pillars_diagonal", 105),
)
WAVELENGTHS_NM = (410.0, 470.0, 530.0, 600.0, 680.0)
FORMULATIONS = ("FFT", "POL_FOURIER")
REPEATING_TERMS = 200
"""Terms for a structure that repeats within the unit cell; they resolve at least as much as 3,200 of the unit cell."""

SCANS = (("chequerboard, 16 pixels", (4, 4)), ("bayer-600nm, sample 551", (5, 0)))
"""Structures, and orders at whose cut-off in the substrate they are scanned; (5, 0) has the same as (3, 4)."""

OFFSETS_NM = np.array([-3, -2, -1, -0.5, 0, 0.5, 1, 2, 3])
STEP_NM = 0.25
LINES = ("tab:red", "tab:green", "yellowgreen", "tab:blue")
"""Line colours of R, G1, G2, B."""

Floats: TypeAlias = NDArray[np.floating]


class Results:
    """Spectra by both methods, kept in a folder.

    Args:
        process: process to simulate; its wavelengths are those of FDTD.
        terms: Fourier terms for structures that do not repeat within the unit cell.
        folder: existing folder.
    """

    def __init__(self, process: Process, terms: int, folder: Path) -> None:
        self.process, self.terms, self.folder = process, terms, folder
        self._solvers: dict[int, Solver] = {}

    def rcwa(self, structure: Structure, wavelengths: Floats, formulation: str, share: float = 1) -> Floats:
        """FMMAX's efficiencies with a share of the terms, (4, W)."""
        terms = round(share * (REPEATING_TERMS if repeats(structure) else self.terms))

        def point(wavelength: float) -> Floats:
            name = f"fmmax-{formulation}-{terms}-{wavelength:g}"
            return self._kept(
                name, structure, lambda: efficiencies(structure, self.process, wavelength, terms, formulation)
            )

        return np.stack([point(float(w)) for w in tqdm(wavelengths, desc=f"FMMAX {formulation}", leave=False)], axis=1)

    def both(self, structure: Structure, wavelengths: Floats) -> Floats:
        """FMMAX's efficiencies in both formulations, (2, 4, W)."""
        return np.stack([self.rcwa(structure, wavelengths, formulation) for formulation in FORMULATIONS])

    def fdtd(self, structure: Structure, cells: int) -> Floats:
        """The solver's efficiencies at all wavelengths, (4, W)."""
        return self._kept(f"fdtd-{cells}", structure, lambda: self._solver(cells).simulate(structure).spectra)

    def _solver(self, cells: int) -> Solver:
        if cells not in self._solvers:
            self._solvers[cells] = Solver(self.process, cells)
        return self._solvers[cells]

    def _kept(self, name: str, structure: Structure, compute: Callable[[], Floats]) -> Floats:
        digest = hashlib.sha256(structure.tobytes() + self.process.model_dump_json().encode()).hexdigest()[:12]
        file = self.folder / f"{name}-{digest}.npy"
        if not file.exists():
            write_array(file, compute())
        return read_array(file)

    def at(self, spectra: Floats, wavelengths: Floats) -> Floats:
        """Columns of FDTD spectra (4, W) at wavelengths on the process's grid."""
        return spectra[:, np.rint((wavelengths - self.process.wavelength_min_nm) / STEP_NM).astype(int)]


def repeats(structure: Structure) -> bool:
    """Whether the structure has a shorter period than the unit cell."""
    return repeating_cell(structure).size < structure.size


def compared_at(structure: Structure) -> Floats:
    """Wavelengths in nm at which a structure is compared: more where FMMAX is fast."""
    return np.arange(400.0, 701.0, 20) if repeats(structure) else np.array(WAVELENGTHS_NM)


def cut_off_nm(process: Process, order: tuple[int, int], in_substrate: bool) -> float:
    """Wavelength in nm above which a diffraction order is evanescent, in the substrate or in vacuum."""
    spacing = 1000 * process.period_um / float(np.hypot(*order))
    found = spacing
    while in_substrate:  # the index varies little with the wavelength: each round gains two digits
        last, found = found, float(process.substrate.index(np.array([found]))[0]) * spacing
        if abs(found - last) < 1e-6:
            break
    return found


def cut_offs(process: Process, in_substrate: bool) -> str:
    """The cut-offs within the process's wavelengths, as text."""
    orders = {m**2 + n**2: (m, n) for m in range(12) for n in range(m + 1) if m}
    found = [(cut_off_nm(process, order, in_substrate), order) for _, order in sorted(orders.items())]
    within = [
        f"{at:.1f} ({m}, {n})" for at, (m, n) in found if process.wavelength_min_nm <= at <= process.wavelength_max_nm
    ]
    return ", ".join(within)


def rms(error: Floats) -> float:
    return float(np.sqrt((error**2).mean()))


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def convergence(results: Results, structures: dict[str, Structure]) -> str:
    """How far FMMAX with a quarter and half of the terms is from FMMAX with all of them."""
    wavelengths = np.array(WAVELENGTHS_NM[1:4:2])
    rows = []
    for name, structure in structures.items():
        terms = REPEATING_TERMS if repeats(structure) else results.terms
        full = {f: results.rcwa(structure, wavelengths, f) for f in FORMULATIONS}
        cells = [f"{rms(results.rcwa(structure, wavelengths, f, s) - full[f]):.4f}" for f in full for s in (0.25, 0.5)]
        rows.append([name, str(terms), *cells])
    return table(["structure", "terms", *(f"{f}, {share}" for f in FORMULATIONS for share in ("1/4", "1/2"))], rows)


def compare_families(results: Results, structures: dict[str, Structure], grids: list[int]) -> str:
    at = np.array(WAVELENGTHS_NM)
    rcwa = np.stack([results.both(structure, at) for structure in structures.values()], axis=1)
    solved = {c: np.stack([results.fdtd(structure, c) for structure in structures.values()]) for c in grids}
    rows = []
    for cells, spectra in solved.items():
        there = np.stack([results.at(one, at) for one in spectra])
        fine = f"{rms(spectra - solved[grids[-1]]):.4f}" if cells != grids[-1] else ""
        rows.append([str(cells), *(f"{rms(there - one):.4f}" for one in (*rcwa, rcwa.mean(axis=0))), fine])
    head = ["cells", *(f"from FMMAX {f}" for f in FORMULATIONS), "from their mean", f"from {grids[-1]} cells"]
    return f"FMMAX's formulations are {rms(rcwa[0] - rcwa[1]):.4f} (rms) apart.\n\n" + table(head, rows)


def compare_dense(results: Results, structures: dict[str, Structure], grids: list[int]) -> str:
    rows = []
    for name, structure in structures.items():
        at = compared_at(structure)
        rcwa = results.both(structure, at)
        errors = [results.at(results.fdtd(structure, cells), at) - rcwa.mean(axis=0) for cells in grids]
        fill, apart = f"{structure.mean():.2f}", f"{rms(rcwa[0] - rcwa[1]):.4f}"
        rows.append([name, fill, str(len(at)), apart, *(f"{rms(error):.4f}" for error in errors)])
    return table(
        ["structure", "fill", "wavelengths", "formulations apart", *(f"{cells} cells" for cells in grids)], rows
    )


def compare_scans(results: Results, structures: dict[str, Structure], grids: list[int]) -> str:
    rows = []
    for name, order in SCANS:
        cut_off, at = scan(results.process, order)
        rcwa = results.both(structures[name], at)
        errors = [results.at(results.fdtd(structures[name], cells), at) - rcwa.mean(axis=0) for cells in grids]
        varies = float(np.ptp(rcwa.mean(axis=0), axis=-1).max())
        row = [name, f"{cut_off:.2f}", f"{varies:.4f}", f"{rms(rcwa[0] - rcwa[1]):.4f}"]
        rows.append([*row, *(f"{rms(e):.4f} ({np.abs(e).max():.4f})" for e in errors)])
    head = ["structure", "cut-off (nm)", "varies by", "formulations apart", *(f"{cells} cells" for cells in grids)]
    return table(head, rows)


def scan(process: Process, order: tuple[int, int]) -> tuple[float, Floats]:
    """An order's cut-off in the substrate, and the wavelengths around it, in nm."""
    cut_off = cut_off_nm(process, order, in_substrate=True)
    return cut_off, np.rint(cut_off / STEP_NM) * STEP_NM + OFFSETS_NM


def draw(
    results: Results, axes: Axes, structure: Structure, at: Floats, grids: list[int], title: str, margin_nm: float = 20
) -> None:
    """Spectra of one structure: FMMAX at some wavelengths, and FDTD on some grids to `margin_nm` beyond them."""
    wavelengths = results.process.wavelengths_nm
    shown = (wavelengths >= at.min() - margin_nm) & (wavelengths <= at.max() + margin_nm)
    rcwa = results.both(structure, at)
    for channel, colour in enumerate(LINES):
        for cells, style in zip(grids, (":", "--", "-"), strict=False):
            label = f"{cells} cells" if channel == 0 else None
            spectrum = results.fdtd(structure, cells)[channel]
            axes.plot(wavelengths[shown], spectrum[shown], style, color=colour, lw=1, label=label)
        for marker, formulation, there in zip("ox", FORMULATIONS, rcwa, strict=True):
            label = f"FMMAX {formulation}" if channel == 0 else None
            axes.plot(at, there[channel], marker, color=colour, mfc="none", label=label)
    axes.set(title=title, xlabel="wavelength (nm)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for results and figure")
    parser.add_argument("--terms", type=int, default=400, help="Fourier terms of FMMAX")
    parser.add_argument("--cells", type=int, nargs="+", default=[48, 64, 80], help="grids of all structures")
    parser.add_argument("--fine", type=int, default=128, help="finest grid, of the families only")
    parser.add_argument("--convergence", action="store_true", help="state the error of FMMAX and stop")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    process = Process(wavelength_step_nm=STEP_NM)
    results = Results(process, arguments.terms, arguments.out)
    grids = sorted(set(arguments.cells))
    families = {family: random_structure(np.random.default_rng(seed), family) for family, seed in FAMILIES}
    dense = hard_structures()

    if arguments.convergence:
        print(convergence(results, {"random_field": families["random_field"]} | dense))
        return
    print(f"Cut-offs in the substrate (nm): {cut_offs(process, True)}\nIn vacuum: {cut_offs(process, False)}\n")
    print(f"FMMAX: {arguments.terms} terms, {REPEATING_TERMS} for structures that repeat.\n")
    print("Dense and regular structures, rms from the mean of FMMAX's formulations:\n")
    print(compare_dense(results, dense, grids), flush=True)
    print("Around cut-offs, rms (largest) from that mean:\n")
    print(compare_scans(results, dense, grids), flush=True)
    print("Families, rms:\n")
    print(compare_families(results, families, sorted({*grids, arguments.fine})), flush=True)

    figure, axes = pyplot.subplots(2, 5, figsize=(19, 8), layout="constrained")
    for one, (family, structure) in zip(axes[0], families.items(), strict=True):
        shown = [grids[0], grids[-1], arguments.fine]
        draw(results, one, structure, np.array(WAVELENGTHS_NM), shown, family)
    for one, name in zip(axes[1], ("chequerboard, 16 pixels", "chequerboard, 64 pixels", SCANS[1][0]), strict=False):
        draw(results, one, dense[name], compared_at(dense[name]), grids, name)
    for one, (name, order) in zip(axes[1, 3:], SCANS, strict=True):
        cut_off, at = scan(process, order)
        draw(results, one, dense[name], at, grids, f"{name}:\ncut-off of order {order}", margin_nm=0)
        one.axvline(cut_off, color="grey", lw=0.5)
    for one in axes[:, 0]:
        one.set_ylabel("efficiency of " + ", ".join(CHANNELS))
        one.legend(fontsize=7)
    figure.savefig(arguments.out / "solver_accuracy.png", dpi=100)


if __name__ == "__main__":
    main()
