"""Error of a network at other distances of the detectors than the one that it was trained at, and a router over the distance.

Simulates structures of the test split and designs of optimisers, none of which was trained on, once each; their spectra at all
distances follow from one simulation. Prints the mean absolute error of the network at each distance, and how far it is too high
for the smallest colour efficiency of the designs. Draws the efficiency of the published router over the distance, predicted and
simulated. Simulations are kept in OUT: the same command resumes.

    python benchmarks/distance.py --out runs/distance [--checkpoint training/checkpoints/field.ckpt] [--cells 80]
        [--structures 100] [--designs 16] [--plot docs/figures/distance.png]
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from tqdm import tqdm
from weights_hash import weights_hash

from metaspec_contract.detectors import COLOUR_NAMES, COLOURS
from metaspec_contract.figures_of_merit import colour_efficiency
from metaspec_contract.files import read_array, write_array
from metaspec_simulation import Solver
from metaspec_simulation.dataset import load
from metaspec_training.fit.checkpoint import load_network
from metaspec_training.networks.field import DiffractionFieldNet
from metaspec_training.report.evaluation import predict

ROOT = Path(__file__).parents[1]
DATA, DESIGNS = ROOT / "datasets" / "bayer-600nm", ROOT / "datasets" / "designs-600nm"
ROUTER = ROOT / "docs" / "design" / "router_78nm.npy"
DISTANCES_UM = np.linspace(1, 3, 17)

Array = NDArray[Any]


def simulated(structures: Array, solver: Solver, folder: Path, name: str) -> Array:
    """Spectra of structures at `DISTANCES_UM`, simulated or read from files in `folder`: float32 (N, D, 4, W)."""
    found = []
    for n, structure in enumerate(tqdm(structures, desc=f"simulating, {name}", unit="structure")):
        file = folder / f"{name}_{n}.npy"
        if not file.exists():
            write_array(file, solver.at_distances(structure, DISTANCES_UM.tolist()))
        found.append(read_array(file))
    return np.stack(found)


def predicted(structures: Array, network: DiffractionFieldNet) -> Array:
    """Spectra of structures at `DISTANCES_UM`, predicted: float32 (N, D, 4, W)."""
    count = len(structures)
    at = [
        predict(network, structures, conditions={"distance_um": np.full((count, 1), distance, np.float32)})
        for distance in DISTANCES_UM
    ]
    return np.stack(at, axis=1)


def table(errors: dict[str, Array], too_high: Array) -> str:
    """Errors by distance in Markdown."""
    lines = [
        "| distance (um) | " + " | ".join(errors) + " | designs: min(R, G, B) too high by |",
        "|---" * (len(errors) + 2) + "|",
    ]
    for n, distance in enumerate(DISTANCES_UM):
        cells = [f"{of[n]:.4f}" for of in errors.values()]
        lines.append(f"| {distance:g} | " + " | ".join(cells) + f" | {too_high[n]:+.4f} |")
    return "\n".join(lines)


def draw(true: Array, found: Array, wavelengths_nm: Array, names: Iterable[str], file: Path) -> None:
    """Colour efficiencies of one structure over the distance; spectra (D, 4, W)."""
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    for colour, name, exact, ours in zip(
        ("#cf3434", "#1f8a3b", "#2f62cf"),
        names,
        colour_efficiency(true, wavelengths_nm).T,
        colour_efficiency(found, wavelengths_nm).T,
        strict=True,
    ):
        axes.plot(DISTANCES_UM, exact, color=colour, linewidth=2.5, label=f"{name}, simulated")
        axes.plot(DISTANCES_UM, ours, color=colour, linestyle="--", marker=".", label=f"{name}, predicted")
    axes.set(xlabel="distance of the detectors (um)", ylabel="efficiency", xlim=(DISTANCES_UM[0], DISTANCES_UM[-1]))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(file, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path, default=ROOT / "training" / "checkpoints" / "field.ckpt")
    parser.add_argument("--cells", type=int, default=80, help="grid cells of the solver per period")
    parser.add_argument("--structures", type=int, default=100, help="structures of the test split")
    parser.add_argument("--designs", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1, help="threads of the solver")
    parser.add_argument("--plot", type=Path, help="picture of the router over the distance")
    arguments = parser.parse_args()
    if min(arguments.structures, arguments.designs, arguments.threads) < 1:
        parser.error("--structures, --designs and --threads must be at least 1")
    network = load_network(arguments.checkpoint)
    if not isinstance(network, DiffractionFieldNet):
        parser.error(f"{arguments.checkpoint} is no network that predicts the field")
    folder = arguments.out / f"{arguments.cells}_cells"
    folder.mkdir(parents=True, exist_ok=True)
    ranged = network.with_distance_range(float(DISTANCES_UM[0]), float(DISTANCES_UM[-1]))
    process = network.process
    solver = Solver(process, arguments.cells, threads=arguments.threads)
    sets = {
        "test split": load(DATA).of("test", arguments.structures).structures,
        "designs": load(DESIGNS).of("test", arguments.designs).structures,
        "router": np.load(ROUTER)[None],
    }
    true = {name: simulated(structures, solver, folder, name.split()[0]) for name, structures in sets.items()}
    found = {name: predicted(structures, ranged) for name, structures in sets.items()}
    errors = {
        f"{name} ({len(sets[name])}): MAE": np.abs(found[name] - true[name]).mean(axis=(0, 2, 3))
        for name in ("test split", "designs")
    }
    smallest = [colour_efficiency(one["designs"], process.wavelengths_nm).min(axis=-1) for one in (found, true)]
    print(f"Network {weights_hash(network)}, solver at {arguments.cells} cells\n")
    print(table(errors, (smallest[0] - smallest[1]).mean(axis=0)))
    if arguments.plot:
        names = [COLOUR_NAMES[colour] for colour in COLOURS]
        draw(true["router"][0], found["router"][0], process.wavelengths_nm, names, arguments.plot)


if __name__ == "__main__":
    main()
