"""Inverse design with and without the surrogate's gradients, and without the surrogate.

Three methods on the same objective, each with the same wall time on the cores of this machine:

- gradient, surrogate: Adam on all pixels, many starts in parallel, through a running server, as `metaspec optimise`;
- CMA-ES, surrogate: 10 x 10 control points, through the same server, gradient-free;
- CMA-ES, solver: the same optimiser with the same seed, but every structure is simulated, at 48 cells, one process per core.

The best binary structures of each, repaired to a minimum feature width, are then simulated at 80 cells, and compared by their
smallest colour efficiency, min(R, G, B) with G = G1 + G2. Finished methods are stored in OUT: the same command resumes.

    python benchmarks/design_bench.py --out runs/design-bench [--minutes 10] [--starts 16] [--steps 200]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from tqdm import tqdm

from metaspec import Spectra, Surrogate, objectives, optimise
from metaspec.topology import PIXEL_NM, Parameterisation, feature_size, without_small_features
from metaspec_contract.files import write_json, write_text
from metaspec_contract.model import DEFAULT_MODEL
from metaspec_contract.process import Process
from metaspec_contract.structures import pack, unpack
from metaspec_simulation import Solver
from metaspec_testing.servers import running_server

OBJECTIVE = objectives.by_name("bayer")
PUBLISHED = {"Zou et al. (2022)": 0.429, "best of the invrs-gym leaderboard": 0.551}
SIMULATED = 4  # best structures of each method

Array = NDArray[Any]
Proposals = Iterator[tuple[Array, Callable[[Array], None]]]
"""Structures to evaluate, with the function that takes their values."""


@cache
def solver(cells: int) -> Solver:
    return Solver(Process(), cells)


def simulate(structure: Array, cells: int) -> Array:
    return solver(cells).simulate(structure).spectra


class Simulated:
    """The solver in place of a surrogate: `predict` runs one process per core."""

    def __init__(self, pool: ProcessPoolExecutor, cells: int) -> None:
        self.pool, self.cells = pool, cells

    def predict(self, structures: Array) -> Spectra:
        values = np.array(list(self.pool.map(simulate, structures, [self.cells] * len(structures))), np.float32)
        return Spectra(values, Process().wavelengths_nm, model=f"solver, {self.cells} cells")


def clean(structures: Array, min_feature_nm: float) -> Array:
    """Structures repaired to a minimum feature width, without those that cannot be repaired."""
    mended = [without_small_features(one, min_feature_nm) for one in structures]
    return np.array([one for one in mended if min(feature_size(one)) >= min_feature_nm])


@dataclass(frozen=True)
class Found:
    """What a method has found.

    Attributes:
        structures: candidates for the best structure, (N, 128, 128).
        curve: seconds, and the best objective so far.
        calls: calls of the surrogate or the solver.
        evaluated: structures evaluated.
    """

    structures: Array
    curve: list[tuple[float, float]]
    calls: int
    evaluated: int


def by_gradient(surrogate: Surrogate, parameterisation: Parameterisation, arguments: argparse.Namespace) -> Found:
    """Batches of starts, one after the other, as long as another one fits into the time."""
    began, calls, evaluated, longest, batch = time.monotonic(), 0, 0, 0.0, 0
    found: list[Array] = []
    curve: list[tuple[float, float]] = []
    while time.monotonic() - began + longest < 60 * arguments.minutes:
        started = time.monotonic()
        problem = optimise.Problem(surrogate, OBJECTIVE, parameterisation)
        adam = optimise.by_name("adam", arguments.starts, arguments.seed + batch)

        def note(progress: optimise.Progress) -> None:
            best = max(float(progress.best.max()), curve[-1][1] if curve else 0)
            curve.append((time.monotonic() - began, best))

        result = optimise.run(problem, adam, arguments.steps, callback=note)
        found.append(result.structure)
        calls, evaluated = calls + result.server_calls, evaluated + result.structures_evaluated
        longest, batch = max(longest, time.monotonic() - started), batch + 1
    return Found(np.concatenate(found), curve, calls, evaluated)


def without_gradient(predict: Callable[[Array], Spectra], proposals: Proposals, minutes: float) -> Found:
    """Evaluate proposals for some minutes."""
    began, calls, evaluated = time.monotonic(), 0, 0
    curve: list[tuple[float, float]] = []
    kept: list[tuple[float, Array]] = []
    with tqdm(total=round(60 * minutes), unit="s") as bar:
        while (spent := time.monotonic() - began) < 60 * minutes:
            structures, tell = next(proposals)
            value, _ = OBJECTIVE(predict(structures))
            tell(value)
            kept += zip(value.tolist(), structures, strict=True)
            kept = sorted(kept, key=lambda one: -one[0])[: 4 * SIMULATED]
            calls, evaluated = calls + 1, evaluated + len(structures)
            curve.append((time.monotonic() - began, kept[0][0]))
            bar.update(round(time.monotonic() - began) - round(spent))
    return Found(np.array([one for _, one in kept]), curve, calls, evaluated)


def evolution(parameterisation: Parameterisation, arguments: argparse.Namespace) -> Proposals:
    optimiser = optimise.by_name("cmaes", arguments.starts, arguments.seed)
    while True:
        yield parameterisation.binary(optimiser.ask()), optimiser.tell


def judge(
    found: Found, pool: ProcessPoolExecutor, surrogate: Surrogate, arguments: argparse.Namespace
) -> dict[str, Any]:
    """Simulate the structures with the best predictions after repair. Returns the results as JSON."""
    structures = clean(found.structures, arguments.min_feature_nm)
    predicted = surrogate.predict(structures)
    best = np.argsort(-predicted.min_efficiency())[:SIMULATED]
    values = np.array(list(pool.map(simulate, structures[best], [arguments.cells] * len(best))), np.float32)
    truth = Spectra(values, Process().wavelengths_nm)
    top = int(truth.min_efficiency().argmax())
    return {
        "min_efficiency": truth.min_efficiency().tolist(),
        "colour_efficiency": truth.colour_efficiency()[top].tolist(),
        "predicted": predicted.min_efficiency()[best].tolist(),
        "mae": float(np.abs(predicted.values[best] - truth.values).mean()),
        "features_nm": list(feature_size(structures[best[top]])),
        "calls": found.calls,
        "evaluated": found.evaluated,
        "usable": f"{len(structures)} of {len(found.structures)}",
        "curve": found.curve,
        "best": pack(structures[best[top]]).tolist(),
    }


def table(results: dict[str, dict[str, Any]]) -> str:
    rows = [
        "| method | structures evaluated | calls | min(R, G, B) simulated | predicted | R, G, B simulated | narrowest |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, one in results.items():
        top = int(np.argmax(one["min_efficiency"]))
        colours = ", ".join(f"{value:.3f}" for value in one["colour_efficiency"])
        cells = (
            f"{one['evaluated']}",
            f"{one['calls']}",
            f"{one['min_efficiency'][top]:.3f}",
            f"{one['predicted'][top]:.3f}",
            colours,
            f"{min(one['features_nm']):.0f} nm",
        )
        rows.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def draw(results: dict[str, dict[str, Any]], path: Path) -> None:
    figure = Figure(figsize=(11, 4), layout="constrained")
    axes = figure.subplots(1, 2, width_ratios=(2, 1))
    for number, (name, one) in enumerate(results.items()):
        seconds, best = np.array(one["curve"]).T
        axes[0].plot(seconds / 60, best, color=f"C{number}", label=name)
        axes[0].plot(seconds[-1] / 60, max(one["min_efficiency"]), "*", ms=11, color=f"C{number}")
    for (name, value), style in zip(PUBLISHED.items(), ("--", ":"), strict=True):
        axes[0].axhline(value, color="0.4", ls=style, lw=1)
        axes[0].text(0.02, value + 0.004, name, color="0.3", fontsize=8, transform=axes[0].get_yaxis_transform())
    axes[0].set(xlabel="minutes", ylabel="objective; star: simulated min(R, G, B)")
    axes[0].legend(fontsize=8, loc="lower left", bbox_to_anchor=(0.3, 0.25))
    name, top = max(results.items(), key=lambda item: max(item[1]["min_efficiency"]))
    structure = unpack(np.array(top["best"], np.uint8))
    axes[1].imshow(np.tile(structure, (2, 2)), cmap="binary", extent=(0, 4, 4, 0))
    axes[1].set(title=f"best: {max(top['min_efficiency']):.3f}, {name}\n2 x 2 periods", xlabel="um", ylabel="um")
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--starts", type=int, default=16)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--radius_nm", type=float, default=Parameterisation().radius_nm)
    parser.add_argument("--symmetry", choices=["diagonal"])
    parser.add_argument("--min_feature_nm", type=float, default=5 * PIXEL_NM)
    parser.add_argument("--cells", type=int, default=80, help="grid of the final simulation")
    arguments = parser.parse_args()

    arguments.out.mkdir(parents=True, exist_ok=True)
    file = arguments.out / "results.json"
    parameterisation = Parameterisation(arguments.radius_nm, arguments.symmetry)
    with (
        running_server() as server,
        Surrogate(server.url, batch_size=32) as surrogate,
        ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn")) as pool,
    ):
        weights = surrogate.metadata().details["weights_sha256"][:12]
        settings = {name: value for name, value in vars(arguments).items() if name != "out"} | {"weights": weights}
        stored = json.loads(file.read_text()) if file.exists() else {"settings": settings, "ways": {}}
        if stored["settings"] != settings:
            sys.exit(f"{file} was made with {stored['settings']}, not {settings}: choose another --out")
        Simulated(pool, 48).predict(
            np.zeros((os.cpu_count() or 1, 128, 128), np.uint8)
        )  # compiled before the clock runs
        ways: dict[str, Callable[[], Found]] = {
            "gradient, surrogate": lambda: by_gradient(surrogate, parameterisation, arguments),
            "CMA-ES, surrogate": lambda: without_gradient(
                surrogate.predict, evolution(parameterisation, arguments), arguments.minutes
            ),
            "CMA-ES, solver": lambda: without_gradient(
                Simulated(pool, 48).predict, evolution(parameterisation, arguments), arguments.minutes
            ),
        }
        for name, way in ways.items():
            if name not in stored["ways"]:
                print(name, flush=True)
                stored["ways"][name] = judge(way(), pool, surrogate, arguments)
                write_json(file, stored)
    draw(stored["ways"], arguments.out / "design_bench.png")
    text = f"Surrogate: `{DEFAULT_MODEL}` {weights}\n\n" + table(stored["ways"])
    write_text(arguments.out / "design_bench.md", text + "\n")
    print(text)


if __name__ == "__main__":
    main()
