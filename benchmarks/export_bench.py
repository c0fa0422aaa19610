"""Speed of exported graphs: PyTorch and ONNX Runtime side by side, forward and gradient, every precision and batch size.

python benchmarks/export_bench.py [--checkpoint FILE] [--threads 2] [--rounds 7] [--batches 1 8 32 128] [--plot FILE.svg]

Each contender runs in a process of its own, so that its peak memory can be measured, and they take turns in every round.
The network is that of a checkpoint, whose graphs are made anew; the table names the hash of each graph's weights.
"""

from __future__ import annotations

import argparse
import multiprocessing as mp
import os
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray

from metaspec_contract.model import COTANGENT, STRUCTURE, gradient_model
from metaspec_export.graph import forward_graph, gradient_graph
from metaspec_export.metadata import weights_sha256
from metaspec_export.precision import PRECISIONS, reduce
from metaspec_simulation.data.families import FAMILIES, random_structure
from metaspec_training.fit.checkpoint import load_network

CHECKPOINT = Path(__file__).parents[1] / "training" / "checkpoints" / "field.ckpt"

Array = NDArray[np.float32]
Call = Callable[[Array, Array], object]


def network(checkpoint: Path) -> torch.nn.Module:
    return load_network(checkpoint).eval().requires_grad_(False)


def pytorch(checkpoint: Path, gradient: bool, compiled: bool) -> Call:
    """A call that computes spectra, or spectra and gradient."""
    model = network(checkpoint)
    if compiled:
        model.compile(dynamic=False)

    def forward(density: Array, cotangent: Array) -> object:
        with torch.inference_mode():
            return model(torch.from_numpy(density))

    def joint(density: Array, cotangent: Array) -> object:
        x = torch.from_numpy(density).requires_grad_()
        return torch.autograd.grad(model(x).flatten(1, 2), x, torch.from_numpy(cotangent))

    return joint if gradient else forward


def onnx_runtime(path: Path, threads: int, optimised: bool) -> Call:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    if not optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    return lambda density, cotangent: session.run(
        None, {name: value for name, value in ((STRUCTURE, density), (COTANGENT, cotangent)) if name in names}
    )


def graph_file(folder: Path, precision: str, gradient: bool) -> Path:
    return folder / f"{gradient_model(precision) if gradient else precision}.onnx"


def peak_mib() -> float:
    """Peak resident memory of this process alone; `getrusage` would include the process that started it."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def worker(pipe: Connection, name: str, checkpoint: Path, folder: Path, gradient: bool, threads: int) -> None:
    """Build one contender, then time a batch for each request; an error is answered with its text."""
    torch.set_num_threads(threads)
    try:
        if name.startswith("PyTorch"):
            call = pytorch(checkpoint, gradient, compiled="compile" in name)
        else:
            file = graph_file(folder, name.split()[2], gradient)
            call = onnx_runtime(file, threads, optimised="unoptimised" not in name)
        pipe.send(None)
        while (batch := pipe.recv()) is not None:
            rng = np.random.default_rng(batch)
            structures = np.stack(
                [random_structure(np.random.default_rng(n), FAMILIES[0]) for n in range(min(batch, 8))]
            )
            density = np.resize(structures, (batch, 1, 128, 128)).astype(np.float32)
            cotangent = rng.standard_normal((batch, 4, 301), np.float32)
            time.sleep(0.1)  # until the idle threads of the previous contender have stopped spinning
            started = time.perf_counter()
            call(density, cotangent)
            seconds = time.perf_counter() - started
            pipe.send((seconds, peak_mib()))
    except Exception as error:
        pipe.send(f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:100])


def compare(
    checkpoint: Path, folder: Path, gradient: bool, batches: list[int], rounds: int, threads: int
) -> dict[str, dict[int, float]]:
    """Measure structures per second of every contender, taking turns, and print them; returns them by name and batch size."""
    names = ["PyTorch eager", "PyTorch compile", "ONNX Runtime fp32 unoptimised"]
    names += [f"ONNX Runtime {precision}" for precision in PRECISIONS]
    context = mp.get_context("spawn")
    pipes, failures = {}, {}
    for name in names:
        ours, theirs = context.Pipe()
        context.Process(target=worker, args=(theirs, name, checkpoint, folder, gradient, threads), daemon=True).start()
        answer = ours.recv()
        if answer is None:
            pipes[name] = ours
        else:
            failures[name] = answer
    seconds: dict[str, dict[int, list[float]]] = {name: {batch: [] for batch in batches} for name in pipes}
    memory: dict[str, float] = {}
    for batch in batches:
        for turn in range(rounds + 1):
            for name in list(pipes):
                pipes[name].send(batch)
                answer = pipes[name].recv()
                if isinstance(answer, str):
                    failures[name] = answer
                    del pipes[name], seconds[name]
                    continue
                memory[name] = answer[1]
                if turn:  # the first one warms up
                    seconds[name][batch].append(answer[0])
    for pipe in pipes.values():
        pipe.send(None)
    rates = {name: {b: b / float(np.median(values[b])) for b in batches} for name, values in seconds.items()}
    title = "Spectra and gradient" if gradient else "Spectra"
    print(f"\n## {title}: structures per second (and times PyTorch eager)\n")
    print("| | " + " | ".join(f"batch {b}" for b in batches) + " | peak memory | file | weights SHA-256 |")
    print("|---" * (len(batches) + 4) + "|")
    for name, rate in rates.items():
        cells = [f"{rate[b]:.0f} ({rate[b] / rates['PyTorch eager'][b]:.2f})" for b in batches]
        size = digest = ""
        if not name.startswith("PyTorch"):
            file = graph_file(folder, name.split()[2], gradient)
            size, digest = f"{file.stat().st_size / 2**20:.1f} MiB", f"`{weights_sha256(onnx.load(file))[:12]}`"
        print(f"| {name} | " + " | ".join(cells) + f" | {memory[name]:.0f} MiB | {size} | {digest} |")
    for name, reason in failures.items():
        print(f"| {name} | not run: {reason} |" + " |" * (len(batches) + 2))
    return rates


def plot(results: dict[str, dict[str, dict[int, float]]], path: Path) -> None:
    figure, axes = plt.subplots(1, len(results), figsize=(10, 3.6), sharey=True, constrained_layout=True)
    for axis, (title, rates) in zip(axes, results.items(), strict=True):
        for name, rate in rates.items():
            axis.plot(list(rate), list(rate.values()), "o-", label=name)
        axis.set(title=title, xlabel="structures in a batch", xscale="log", ylim=(0, None))
        axis.set_xticks(list(rate), [str(b) for b in rate])
    axes[0].set_ylabel("structures / s")
    axes[-1].legend(fontsize="small")
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32, 128])
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    about = f"{arguments.threads} threads, median of {arguments.rounds} rounds, ONNX Runtime {onnxruntime.__version__}"
    print(f"{arguments.checkpoint.name}, {about}")
    calibration = np.stack([random_structure(np.random.default_rng(n), f) for n, f in enumerate(FAMILIES)])
    results = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for gradient, trace in ((False, forward_graph), (True, gradient_graph)):
            graph = trace(network(arguments.checkpoint))
            for precision in PRECISIONS:
                reduced = reduce(graph, precision, calibration)
                onnx.save(reduced, graph_file(folder, precision, gradient))
            title = "spectra and gradient" if gradient else "spectra"
            results[title] = compare(
                arguments.checkpoint, folder, gradient, arguments.batches, arguments.rounds, arguments.threads
            )
    fp32 = {title: rates["ONNX Runtime fp32"] for title, rates in results.items()}
    cost = [f"{fp32['spectra'][b] / fp32['spectra and gradient'][b]:.2f}" for b in arguments.batches]
    print(f"\nA gradient costs {', '.join(cost)} forward passes in float32 (batch {arguments.batches}).")
    if arguments.plot:
        plot(results, arguments.plot)


if __name__ == "__main__":
    main()
