"""Time per structure of each bundled model and of the solver that made their data, and the error of each model.

All on this machine, one thread each, in one run, taking turns. Errors are those in the models' metadata.

python benchmarks/speedup.py [--rounds 5]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from bundled import feed, hash_of

from metaspec_contract.model import SPECTRA, ModelMetadata
from metaspec_contract.process import Process
from metaspec_contract.structures import Structure
from metaspec_export.metadata import ExportedMetadata, read
from metaspec_simulation import Solver
from metaspec_simulation.dataset import load

ROOT = Path(__file__).parents[1]
BATCHES = (1, 32)


def predict(session: onnxruntime.InferenceSession, metadata: ModelMetadata, structures: Structure) -> None:
    session.run([SPECTRA], feed(metadata, structures))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds

    structures = load(ROOT / "datasets" / "bayer-600nm").of("test").structures
    solver = Solver(Process(), cells=80)
    solver.simulate(structures[0])  # compile, load caches
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # the solver has one thread, too
    measured: dict[str, ExportedMetadata] = {}
    sessions = {}
    for file in sorted((ROOT / "server" / "models").glob("*/*/model.onnx")):
        metadata = read(onnx.load(file))
        if metadata.kind == "forward":
            measured[metadata.name] = metadata
            sessions[metadata.name] = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])

    milliseconds: dict[tuple[str, int], list[float]] = {}
    for n in range(rounds):
        turns: list[tuple[str, int, Callable[[], object]]] = [("solver", 1, partial(solver.simulate, structures[n]))]
        for name, session in sessions.items():
            turns += [
                (name, batch, partial(predict, session, measured[name], structures[n : n + batch])) for batch in BATCHES
            ]
        for name, batch, run in turns:
            if name != "solver":  # whose seconds hardly notice what the others left in the caches
                run()
            started = time.perf_counter()
            run()
            milliseconds.setdefault((name, batch), []).append(1000 * (time.perf_counter() - started) / batch)

    median = {key: float(np.median(values)) for key, values in milliseconds.items()}
    slow = median["solver", 1]
    print(f"One thread each, median of {rounds} rounds.\n")
    print(
        "| | network SHA-256 | test MAE | "
        + " | ".join(f"ms, batch {batch} | times faster" for batch in BATCHES)
        + " |"
    )
    print("|---" * (3 + 2 * len(BATCHES)) + "|")
    print(f"| solver, 80 cells | | | {slow:.0f} | 1 | | |")
    for name, metadata in measured.items():
        cells = [f"{median[name, batch]:.1f} | {slow / median[name, batch]:.0f}" for batch in BATCHES]
        error = metadata.metrics["test"]["mae"]
        print(f"| `{name}` | `{hash_of(metadata)}` | {error:.4f} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
