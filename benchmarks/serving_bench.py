"""Serving overhead: the same model.onnx on the same cores with ONNX Runtime called directly, our server, Triton, LitServe.

Closed loops of callers, one contender at a time, in turns for several rounds. "direct" is a loop around ONNX Runtime with its
defaults: all cores compute one micro-batch. "direct, tuned" has a micro-batch of two on each core. Then the overhead alone: a
model that computes nothing, with 256 bit-packed structures per request in and float32 spectra out.

Before and after each contender's turn, nothing of the benchmark runs for a second. If the cores are busy then, by more than
BUSY, the turn was disturbed: it is named, and counted in the table. Measure on an idle machine.

    pip install litserve python-multipart
    python benchmarks/serving_bench.py [--rounds 3] [--seconds 8] [--plot FILE.svg]
    python benchmarks/serving_bench.py --only direct metaspec one-engine    # against --instances 1

Triton is the binary of nvidia-pytriton, which `make test` installs; its Python backend runs the same ONNX Runtime session.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

import contenders
import matplotlib
import numpy as np
import psutil
from bundled import metadata_of, model_of, newest
from contenders import Contender, Watched

from metaspec_testing.closed_loop import Load, closed_loop
from metaspec_testing.triton import python_repository

matplotlib.use("Agg")
from matplotlib import pyplot

ROOT = Path(__file__).parents[1]
LOADS = [(1, 1), (16, 1), (64, 1), (4, 64)]
OVERHEAD = (4, 256)
SERVERS = ["metaspec", "one-engine", "triton", "litserve"]
BUSY = 0.05
"""Share of the cores that other work may take before and after a turn."""

Results = dict[str, dict[tuple[int, int], "Measured"]]


@dataclass
class Measured:
    """Measurements of one contender under one load, all rounds together.

    Attributes:
        structures: number of structures that were answered.
        seconds: duration in seconds.
        latencies: latency of every request in seconds.
        cpu_seconds: CPU time of the contender in seconds.
        peak_mib: its peak memory in MiB.
        turns: number of rounds.
        disturbed: number of those that other work may have disturbed.
    """

    structures: int = 0
    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    cpu_seconds: float = 0.0
    peak_mib: float = 0.0
    turns: int = 0
    disturbed: int = 0

    def add(self, load: Load, batch: int, cpu_seconds: float, peak_mib: float) -> None:
        self.structures += batch * len(load.latencies)
        self.seconds += load.seconds
        self.latencies += load.latencies
        self.cpu_seconds += cpu_seconds
        self.peak_mib = max(self.peak_mib, peak_mib)

    @property
    def rate(self) -> float:
        """Structures per second."""
        return self.structures / self.seconds


class Turn:
    """A block in which a contender is measured, between two looks at how busy the cores are with other work.

    Args:
        name: the contender and the round.
        measured: where the turn is counted, by load.
    """

    def __init__(self, name: str, *measured: dict[tuple[int, int], Measured]) -> None:
        self._name, self._measured = name, measured

    def __enter__(self) -> None:
        print(self._name, file=sys.stderr, flush=True)
        self._before = psutil.cpu_percent(1.0) / 100

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        if kind is not None:
            return
        after = psutil.cpu_percent(1.0) / 100
        disturbed = max(self._before, after) > BUSY
        if disturbed:
            said = f"{self._before:.0%} of the cores were busy before, {after:.0%} after"
            print(f"{self._name}: disturbed, {said}", file=sys.stderr, flush=True)
        for one in (one for results in self._measured for one in results.values()):
            one.turns += 1
            one.disturbed += disturbed


def measure(
    contender: AbstractContextManager[Contender],
    loads: list[tuple[int, int]],
    seconds: float,
    results: dict[tuple[int, int], Measured],
) -> None:
    """Start a contender, and put each load on it, after a short one to warm up."""
    with contender as (address, process, request_of):
        for callers, batch in loads:
            request = request_of(batch)
            closed_loop(address, request, callers, min(1.0, seconds))
            with Watched(process) as watched:
                load = closed_loop(address, request, callers, seconds)
            results.setdefault((callers, batch), Measured()).add(load, batch, watched.cpu_seconds, watched.peak_mib)


def measure_direct(
    model: Path, threads: int, seconds: float, results: dict[tuple[int, int], Measured], tuned: bool
) -> None:
    """Measure ONNX Runtime without a server; see `contenders.direct`."""
    for callers, batch in LOADS:
        load, cpu_seconds, peak_mib = contenders.direct(model, threads, callers, batch, seconds, tuned)
        results.setdefault((callers, batch), Measured()).add(load, batch, cpu_seconds, peak_mib)


def table(results: Results, loads: list[tuple[int, int]]) -> str:
    columns = (
        "callers x structures|server|structures/s|of direct|p50 ms|p95 ms|p99 ms|CPU ms/structure|peak MiB|disturbed"
    )
    lines = [f"| {columns.replace('|', ' | ')} |", "|---" * (columns.count("|") + 1) + "|"]
    for load in loads:
        for name, measured in results.items():
            if load not in measured:
                continue
            m = measured[load]
            share = f"{m.rate / results['direct'][load].rate:.2f}" if load in results.get("direct", {}) else ""
            p50, p95, p99 = 1000 * np.percentile(m.latencies, (50, 95, 99))
            lines.append(
                f"| {load[0]} x {load[1]} | {name} | {m.rate:.1f} | {share} | {p50:.1f} | {p95:.1f} | {p99:.1f} "
                f"| {1000 * m.cpu_seconds / m.structures:.3f} | {m.peak_mib:.0f} | {m.disturbed} of {m.turns} |"
            )
    return "\n".join(lines)


def draw(results: Results, path: Path) -> None:
    figure, (rates, times) = pyplot.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    width = 0.8 / len(results)
    for n, (name, measured) in enumerate(results.items()):
        at = np.arange(len(LOADS)) + (n - (len(results) - 1) / 2) * width
        rates.bar(at, [measured[load].rate for load in LOADS], width, label=name)
        times.bar(at, [1000 * np.median(measured[load].latencies) for load in LOADS], width, label=name)
    for axes, title in ((rates, "structures per second"), (times, "median latency in ms")):
        axes.set_xticks(range(len(LOADS)), [f"{callers} x {batch}" for callers, batch in LOADS])
        axes.set(title=title, xlabel="callers x structures in a request")
    times.set_yscale("log")
    handles, labels = rates.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(results))
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=newest())
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument(
        "--only",
        nargs="+",
        choices=["direct", "direct-tuned", *SERVERS],
        default=["direct", "direct-tuned", "metaspec", "triton", "litserve"],
    )
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    model, threads, seconds = arguments.model, arguments.threads, arguments.seconds

    results: Results = {name: {} for name in arguments.only}
    overhead: Results = {name: {} for name in ("metaspec", "triton") if name in arguments.only}
    with tempfile.TemporaryDirectory(dir=model.parents[3]) as temporary:
        work, taken = Path(temporary), metadata_of(model).conditions
        repository = contenders.repository_of(model, work / "models")
        nothing = contenders.model_that_computes_nothing(work / "nothing")
        for_triton = python_repository(repository, work / "triton", threads)
        nothing_for_triton = contenders.triton_that_computes_nothing(work / "triton_nothing")
        servers = {
            "metaspec": lambda: contenders.metaspec(repository, threads, conditions=taken),
            "one-engine": lambda: contenders.metaspec(repository, threads, "--instances", "1", conditions=taken),
            "triton": lambda: contenders.triton(for_triton, conditions=taken),
            "litserve": lambda: contenders.litserve(model, threads),
        }
        without_work = {
            "metaspec": lambda: contenders.metaspec(nothing, 1, "--max-batch", "256", packed=True),
            "triton": lambda: contenders.triton(nothing_for_triton, packed=True),
        }
        for turn in range(arguments.rounds):
            for name, measured in results.items():
                with Turn(f"round {turn + 1}: {name}", measured, overhead.get(name, {})):
                    if name in servers:
                        measure(servers[name](), LOADS, seconds, measured)
                    else:
                        measure_direct(model, threads, seconds, measured, tuned=name == "direct-tuned")
                    if name in without_work:
                        measure(without_work[name](), [OVERHEAD], seconds, overhead[name])
    print(f"{model_of(model)}\n\n{table(results, LOADS)}")
    print("\nA model that computes nothing, bit-packed in, float32 out:\n")
    print(table(overhead, [OVERHEAD]))
    if arguments.plot:
        draw(results, arguments.plot)


if __name__ == "__main__":
    main()
