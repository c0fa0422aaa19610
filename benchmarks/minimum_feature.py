"""What a minimum feature size costs, and what polishing on the solver brings.

    python benchmarks/minimum_feature.py --out runs/features [--widths 60 78 80 100 120] [--best 4] [--cells 64]

For each width, `metaspec optimise` designs routers through the server that is started here, keeping the width, and `metaspec
polish` improves the best ones on the solver. The best design of each, before and after, is simulated at 80 cells as drawn, and
with all edges moved by 10 nm: solid eroded and dilated. Compared with designs of a run without the rule that are repaired in
the end. Commands that have finished are not repeated: the same call resumes.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import distance_transform_edt

from metaspec import Spectra
from metaspec.gds import write_gds
from metaspec.topology import PIXEL_NM, feature_size, without_small_features
from metaspec_contract.files import read_array, write_array, write_json
from metaspec_contract.run_folder import DESIGNS, read_report
from metaspec_simulation.source import SolverSource
from metaspec_testing.servers import running_server

SHIFT_NM = 10.0  # of the edges: what lithography and etching are off by
PUBLISHED = {60: 0.543, 80: 0.551, 100: 0.511, 120: 0.493}
"""Best published designs by minimum feature size, min(R, G, B), thickness and distance free (invrs-gym's leaderboard)."""

_FINE = 8  # parts of a pixel along each side


def moved_edges(structure: ArrayLike, shift_nm: float) -> NDArray[np.float32]:
    """A structure whose solid has grown by a distance on all sides, or shrunk where it is negative, as densities (y, x)."""
    solid = np.kron(np.tile(np.asarray(structure, bool), (3, 3)), np.ones((_FINE, _FINE), bool))
    step = PIXEL_NM / _FINE
    outside, inside = (distance_transform_edt(part) - 0.5 for part in (~solid, solid))
    moved = np.where(solid, -inside, outside) * step < shift_nm
    rows = len(np.asarray(structure))
    shares: NDArray[np.float32] = moved.reshape(3 * rows, _FINE, -1, _FINE).mean(axis=(1, 3), dtype=np.float32)
    return shares[rows : 2 * rows, rows : 2 * rows]


def command(*arguments: object) -> float:
    """Run a command of `metaspec`; returns its wall time in seconds."""
    began = time.monotonic()
    subprocess.run([sys.executable, "-m", "metaspec", *map(str, arguments)], check=True)
    return time.monotonic() - began


def judged(structure: NDArray[Any], source: SolverSource) -> dict[str, float]:
    """Smallest colour efficiency of a design as drawn, and the smaller one of its eroded and dilated form."""
    variants = [structure, moved_edges(structure, -SHIFT_NM), moved_edges(structure, SHIFT_NM)]
    nominal, *shifted = source.predict(np.stack(variants, dtype=np.float32)).min_efficiency().tolist()
    return {"nominal": nominal, "worst": min(shifted)}


def main() -> None:
    """Run the benchmark and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--widths", type=float, nargs="+", default=[60, 78, 80, 100, 120], help="minimum widths in nm")
    parser.add_argument("--starts", type=int, default=16)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--best", type=int, default=4, help="designs that are polished")
    parser.add_argument("--polish-steps", type=int, default=60)
    parser.add_argument("--cells", type=int, default=64, help="grid of the polishing")
    parser.add_argument("--judge", type=int, default=80, help="grid of the final simulations")
    arguments = parser.parse_args()
    with running_server() as server:
        search = ["--url", server.url, "--starts", arguments.starts, "--steps", arguments.steps]
        free = arguments.out / "free"
        command("optimise", *search, "--out", free)
        for width in arguments.widths:
            command("optimise", *search, "--min-feature-nm", width, "--out", arguments.out / f"{width:g}nm")
    rows = []
    cache = arguments.out / "simulated"
    for width in arguments.widths:
        folder = arguments.out / f"{width:g}nm"
        polished = folder / "polished"
        polish = ["--cells", arguments.cells, "--best", arguments.best, "--steps", arguments.polish_steps]
        command("polish", folder, *polish, "--min-feature-nm", width, "--out", polished)
        with SolverSource(cells=arguments.judge, cache=cache) as source:
            repaired = np.stack([without_small_features(one, width) for one in read_array(free / DESIGNS)[:4]])
            before, after = read_array(folder / DESIGNS)[0], best_of(read_array(polished / DESIGNS), source)
            found = {
                "width_nm": width,
                "repaired": float(source.predict(repaired).min_efficiency().max()),
                "predicted": read_report(folder).designs[0].predicted.min_efficiency,
                "surrogate": judged(before, source),
                "polished": judged(after, source),
                "features_nm": list(feature_size(after)),
                "seconds": [read_report(one).wall_s for one in (folder, polished)],
            }
        assert min(feature_size(after)) >= width
        write_array(arguments.out / f"router_{width:g}nm.npy", after)
        write_gds(arguments.out / f"router_{width:g}nm.gds", after)
        rows.append(found)
        write_json(arguments.out / "results.json", rows)
    print(table(rows, read_report(free).model, arguments.judge))


def best_of(designs: NDArray[Any], source: SolverSource) -> NDArray[Any]:
    """The design with the largest smallest colour efficiency on the source's grid."""
    spectra: Spectra = source.predict(designs)
    best: NDArray[Any] = designs[int(spectra.min_efficiency().argmax())]
    return best


def table(rows: list[dict[str, Any]], model: str, cells: int) -> str:
    """The results as a Markdown table."""
    lines = [
        f"min(R, G, B) simulated at {cells} cells; `{model}`; worst: solid eroded or dilated by {SHIFT_NM:g} nm.",
        "",
        "| width, nm | repaired after the run | kept inside: predicted | simulated | worst "
        "| polished | worst | published | seconds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        values = [row["repaired"], row["predicted"], *row["surrogate"].values(), *row["polished"].values()]
        published = PUBLISHED.get(row["width_nm"])
        cells_of = [f"{row['width_nm']:g}", *(f"{value:.3f}" for value in values)]
        cells_of += [f"{published:.3f}" if published else "", " + ".join(f"{one:.0f}" for one in row["seconds"])]
        lines.append("| " + " | ".join(cells_of) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
