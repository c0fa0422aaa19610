"""Design rules of layouts: narrowest features by imageruler, and the rules that pixels and contours pass in KLayout.

    python benchmarks/design_rules.py docs/design/router_78nm.npy ... [--tolerance-nm 15.625] [--cells 80]

Prints a table in Markdown. With --cells, both layouts are simulated: min(R, G, B) of the exact pixels, and of the contours as
densities, the share of each pixel that they cover. Needs the extras "optimise" and "drc", and for --cells the laboratory.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from metaspec.layouts import largest_rules, read_gds, write_gds
from metaspec.topology import feature_size
from metaspec_contract.figures_of_merit import colour_efficiency
from metaspec_contract.process import Process
from metaspec_contract.structures import check_binary
from metaspec_simulation import Solver

HEAD = (
    "| design | imageruler: solid, void (nm) | KLayout, pixels: width, space (nm) | KLayout, contours | pixels changed |",
    "|---|---|---|---|---|",
)


def as_contours(structure: NDArray[np.uint8], tolerance_nm: float) -> NDArray[np.float32]:
    """Densities of a structure's contours, by way of a file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "contours.gds"
        write_gds(path, structure, tolerance_nm=tolerance_nm)
        return read_gds(path)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--tolerance-nm", type=float, default=Process().pixel_nm)
    parser.add_argument("--cells", type=int, help="grid of the solver; without it, nothing is simulated")
    arguments = parser.parse_args()
    solver = None if arguments.cells is None else Solver(Process(), arguments.cells)
    title, line = HEAD
    if solver is not None:
        title, line = f"{title} min(R, G, B) [{arguments.cells}]: pixels | contours |", f"{line}---|---|"
    print(title, line, sep="\n", flush=True)
    for file in arguments.files:
        (structure,) = check_binary(np.load(file))
        solid, void = feature_size(structure)
        pixels = largest_rules(structure)
        contours = largest_rules(structure, tolerance_nm=arguments.tolerance_nm)
        density = as_contours(structure, arguments.tolerance_nm)
        changed = 100 * ((density > 0.5) != structure).mean()
        row = f"| `{file.name}` | {solid:.1f}, {void:.1f} | {pixels.width_nm}, {pixels.space_nm} | "
        row += f"{contours.width_nm}, {contours.space_nm} | {changed:.2f} % |"
        for form in () if solver is None else (structure, density):
            simulation = solver.simulate(form)  # type: ignore[union-attr]
            row += f" {colour_efficiency(simulation.spectra, simulation.wavelengths_nm).min():.4f} |"
        print(row, flush=True)


if __name__ == "__main__":
    main()
