"""Error of a network at other distances of the detectors than that of its process, and a router over the distance.

Structures of the test split and designs of optimisers: their labels hold the orders of the field under the pattern at every
20 nm, which give the spectra at any distance. Prints the mean absolute error of the network at each distance, at these
wavelengths, and how far it is too high for the smallest colour efficiency of the designs. Draws the efficiency of the published
router over the distance, predicted and simulated.

    python benchmarks/distance.py [--checkpoint training/checkpoints/field.ckpt] [--plot docs/figures/distance.png]
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
from metaspec_contract.process import Process
from metaspec_simulation import Solver
from metaspec_simulation.data.labels import ORDERS_NM, thinned, unpack_orders
from metaspec_simulation.data.samples import Samples, load
from metaspec_simulation.physics.farfield import quadrant_weights
from metaspec_training.fit.checkpoint import load_network
from metaspec_training.networks.field import DiffractionFieldNet
from metaspec_training.report.evaluation import predict

ROOT = Path(__file__).parents[1]
DATA, DESIGNS = ROOT / "datasets" / "bayer-600nm-80", ROOT / "datasets" / "designs-600nm-80"
ROUTER = ROOT / "docs" / "design" / "router_78nm_2.npy"
CELLS = 80
DISTANCES_UM = np.linspace(1, 3, 17)

Array = NDArray[Any]


def simulated(samples: Samples) -> Array:
    """Spectra at `DISTANCES_UM`, from the orders under the pattern, at their wavelengths: float32 (N, D, 4, V)."""
    process = samples.process
    solver = Solver(Process(**process.model_dump() | {"wavelength_step_nm": ORDERS_NM}), CELLS)
    quadrants = quadrant_weights(solver.order)
    found = [
        [np.einsum("cyx,wyx->cw", quadrants, solver.flux(orders, distance)) for distance in DISTANCES_UM.tolist()]
        for orders in unpack_orders(samples.orders[samples.ordered], process)
    ]
    return np.asarray(found, np.float32)


def predicted(structures: Array, network: DiffractionFieldNet) -> Array:
    """Spectra of structures at `DISTANCES_UM`, predicted: float32 (N, D, 4, W)."""
    count = len(structures)
    at = [
        predict(network, structures, conditions={"distance_um": np.full((count, 1), distance, np.float32)})
        for distance in tqdm(DISTANCES_UM, desc="predicting", unit="distance")
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
    parser.add_argument("--checkpoint", type=Path, default=ROOT / "training" / "checkpoints" / "field.ckpt")
    parser.add_argument("--plot", type=Path, help="picture of the router over the distance")
    arguments = parser.parse_args()
    network = load_network(arguments.checkpoint)
    if not isinstance(network, DiffractionFieldNet):
        parser.error(f"{arguments.checkpoint} is no network that predicts the field")
    ranged = network.with_distance_range(float(DISTANCES_UM[0]), float(DISTANCES_UM[-1]))
    kept = thinned(network.process, ORDERS_NM)
    wavelengths_nm = network.process.wavelengths_nm
    sets = {name: load(path, orders=True).of("test") for name, path in (("test split", DATA), ("designs", DESIGNS))}
    true = {name: simulated(samples) for name, samples in sets.items()}
    found = {name: predicted(samples.structures, ranged)[..., kept] for name, samples in sets.items()}
    errors = {
        f"{name} ({len(samples)}): MAE": np.abs(found[name] - true[name]).mean(axis=(0, 2, 3))
        for name, samples in sets.items()
    }
    smallest = [colour_efficiency(one["designs"], wavelengths_nm[kept]).min(axis=-1) for one in (found, true)]
    print(f"Network {weights_hash(network)}, labels at {CELLS} cells\n")
    print(table(errors, (smallest[0] - smallest[1]).mean(axis=0)))
    if arguments.plot:
        router = np.load(ROUTER)
        exact = Solver(network.process, CELLS, threads=2).at_distances(router, DISTANCES_UM.tolist())
        names = [COLOUR_NAMES[colour] for colour in COLOURS]
        draw(exact, predicted(router[None], ranged)[0], wavelengths_nm, names, arguments.plot)


if __name__ == "__main__":
    main()
