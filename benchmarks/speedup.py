"""How much faster is the bundled model than the solver that made its data? Both on this machine, in one run, taking turns.

python benchmarks/speedup.py [--rounds 5]
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import onnxruntime
from metaspec_simulation import Process, Solver
from metaspec_simulation.dataset import load

ROOT = Path(__file__).parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds

    structures = load(ROOT / "datasets" / "bayer-600nm").of("test").structures
    solver = Solver(Process(), cells=80)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # the solver has one thread, too
    model = ROOT / "server" / "models" / "diffractionnet" / "1" / "model.onnx"
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def simulate(structure: np.ndarray) -> None:
        solver.simulate(structure)

    def predict(batch: np.ndarray) -> None:
        session.run(["spectra"], {"structure": batch[:, None].astype(np.float32)})

    simulate(structures[0])  # compile, load caches
    seconds: dict[str, list[float]] = {"solver": [], "model, batch 1": [], "model, batch 32": []}
    for n in range(rounds):
        for name, function, argument, count in (
            ("solver", simulate, structures[n], 1),
            ("model, batch 1", predict, structures[n : n + 1], 1),
            ("model, batch 32", predict, structures[:32], 32),
        ):
            started = time.perf_counter()
            function(argument)
            seconds[name].append((time.perf_counter() - started) / count)

    slow = float(np.median(seconds["solver"]))
    print("One thread each, median of", rounds, "rounds.\n")
    print("| | per structure | times faster |\n|---|---|---|")
    for name, values in seconds.items():
        median = float(np.median(values))
        print(f"| {name} | {1000 * median:.1f} ms | {slow / median:.0f} |")


if __name__ == "__main__":
    main()
