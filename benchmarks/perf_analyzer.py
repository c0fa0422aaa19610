"""Triton's load generator, perf_analyzer, on our server and on a real Triton: HTTP and gRPC, with and without shared memory.

    python benchmarks/perf_analyzer.py [--concurrency 1 4 16] [--batch 1] [--seconds 5] [--rounds 2]

Both servers compute the same model.onnx with ONNX Runtime on the same cores, one after the other, in turns for several rounds;
ours without its result cache, because perf_analyzer sends the same structure again and again. Before each measurement an
answer of the server is compared with the model run directly. The generator runs on the same cores, too.

perf_analyzer comes with `tritonclient` 2.50, the last one for glibc before 2.38: pip downloads that wheel unless `--binary`
names the program. Triton, and two libraries that it needs, are those of nvidia-pytriton, which `make test` installs.
"""

from __future__ import annotations

import argparse
import csv
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import zipfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import tritonclient.grpc
import tritonclient.http
from bundled import feed, metadata_of, model_of, newest
from contenders import repository_of

from metaspec_testing.servers import running_server
from metaspec_testing.triton import PACKAGES, python_repository, start_triton

ROOT = Path(__file__).parents[1]
NAME = "diffractionnet"
WHEEL = "tritonclient==2.50.0"
LIBRARIES = {"libb64.so.0d": "libb64-*.so.0d", "libcudart.so.12": "libcudart-*.so.12*"}
MODES = {
    "HTTP": ("http", ()),
    "HTTP, shared memory": ("http", ("--shared-memory", "system")),
    "gRPC": ("grpc", ()),
    "gRPC, shared memory": ("grpc", ("--shared-memory", "system")),
    "gRPC, stream": ("grpc", ("--streaming",)),
}
COLUMNS = {  # of perf_analyzer's report, microseconds unless it is a rate
    "rate": "Inferences/Second",
    "p50": "p50 latency",
    "p99": "p99 latency",
    "queue": "Server Queue",
    "infer": "Server Compute Infer",
}


@dataclass(frozen=True)
class Program:
    """The perf_analyzer.

    Attributes:
        path: path of the program.
        libraries: folder of libraries that it needs.
    """

    path: Path
    libraries: Path


@dataclass(frozen=True)
class Server:
    """A running server: the addresses of its ports, host:port."""

    http: str
    grpc: str


def find_program(given: Path | None, work: Path) -> Program:
    """The program, downloaded if need be, and the libraries that this machine may not have."""
    libraries = work / "libraries"
    libraries.mkdir()
    for name, pattern in LIBRARIES.items():
        for file in (PACKAGES / "nvidia_pytriton.libs").glob(pattern):
            (libraries / name).symlink_to(file)
    known = given or PACKAGES / "bin" / "perf_analyzer"
    found = str(known) if known.exists() else shutil.which("perf_analyzer")
    if found or given:
        return Program(Path(found or known), libraries)
    options = ["--quiet", "--no-deps", "--only-binary", ":all:", "--platform", "manylinux1_x86_64", "--dest", str(work)]
    subprocess.run([sys.executable, "-m", "pip", "download", *options, WHEEL], check=True)
    (wheel,) = work.glob("tritonclient-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (member,) = (name for name in archive.namelist() if name.endswith("bin/perf_analyzer"))
        (work / "perf_analyzer").write_bytes(archive.read(member))
    (work / "perf_analyzer").chmod(0o755)
    return Program(work / "perf_analyzer", libraries)


@contextmanager
def metaspec(repository: Path, threads: int) -> Iterator[Server]:
    flags = ("--repository", str(repository), "--threads", str(threads), "--cache-mb", "0", "--grpc-port", "0")
    with running_server(*flags) as server:
        yield Server(server.address, server.grpc_address)


@contextmanager
def triton(repository: Path) -> Iterator[Server]:
    with tempfile.TemporaryDirectory() as work, start_triton(repository, Path(work)) as server:
        yield Server(server.http, server.grpc)


def check(server: Server, model: Path) -> None:
    """Compare answers over HTTP and gRPC with the model run directly."""
    structures = np.random.default_rng(1).integers(0, 2, (3, 1, 128, 128)).astype(np.float32)
    inputs = feed(metadata_of(model), structures[:, 0])
    expected = onnxruntime.InferenceSession(model).run(None, inputs)[0]
    for protocol, address in ((tritonclient.http, server.http), (tritonclient.grpc, server.grpc)):
        with protocol.InferenceServerClient(address) as client:
            tensors = []
            for name, array in inputs.items():
                tensors.append(protocol.InferInput(name, list(array.shape), "FP32"))
                tensors[-1].set_data_from_numpy(array)
            np.testing.assert_allclose(client.infer(NAME, tensors).as_numpy("spectra"), expected, atol=1e-5)


def analyse(
    program: Program, server: Server, mode: str, concurrency: int, batch: int, seconds: float, work: Path
) -> dict[str, float]:
    """Run perf_analyzer once; returns what its report says."""
    protocol, flags = MODES[mode]
    report = work / "report.csv"
    report.unlink(missing_ok=True)
    command = [
        str(program.path),
        *("-m", NAME, "-i", protocol, "-u", server.http if protocol == "http" else server.grpc, "-b", str(batch)),
        *("--input-data", str(work / "data"), "--output-shared-memory-size", str(batch * 4 * 301 * 4)),
        *("--concurrency-range", str(concurrency), "-p", str(round(1000 * seconds))),
        # Three windows of at least so many requests, however much they differ: there are several rounds.
        *(
            "--measurement-mode",
            "count_windows",
            "--measurement-request-count",
            str(10 * concurrency),
            "-s",
            "999",
            "-r",
            "3",
        ),
        *("-f", str(report)),
        *flags,
    ]
    environment = os.environ | {"LD_LIBRARY_PATH": str(program.libraries)}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if result.returncode or not report.exists():
        raise RuntimeError(f"{' '.join(command)} ended with {result.returncode}:\n{result.stdout}\n{result.stderr}")
    (row,) = csv.DictReader(report.open())
    return {name: float(row[column]) for name, column in COLUMNS.items()}


def table(measured: dict[tuple[str, int, str], list[dict[str, float]]]) -> str:
    lines = [
        "| protocol | callers | server | structures/s | p50 ms | p99 ms | of it in the queue | in the model |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (mode, concurrency, server), runs in measured.items():
        middle = {name: statistics.median(run[name] for run in runs) for name in COLUMNS}
        times = " | ".join(f"{middle[name] / 1000:.2f}" for name in ("p50", "p99", "queue", "infer"))
        lines.append(f"| {mode} | {concurrency} | {server} | {middle['rate']:.1f} | {times} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=newest(NAME))
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=5.0, help="length of a measurement window")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--only", nargs="+", choices=["metaspec", "triton"], default=["metaspec", "triton"])
    parser.add_argument("--modes", nargs="+", choices=list(MODES), default=list(MODES))
    parser.add_argument("--binary", type=Path, help="path of perf_analyzer")
    arguments = parser.parse_args()

    measured: defaultdict[tuple[str, int, str], list[dict[str, Any]]] = defaultdict(list)
    with tempfile.TemporaryDirectory(dir=arguments.model.parents[3]) as temporary:
        work = Path(temporary)
        program = find_program(arguments.binary, work)
        (work / "data").mkdir()
        structure = np.random.default_rng(0).integers(0, 2, (1, 128, 128), np.uint8)
        for name, array in feed(metadata_of(arguments.model), structure).items():
            array.astype("<f4").tofile(work / "data" / name)
        repository = repository_of(arguments.model, work / "models")
        for_triton = python_repository(repository, work / "triton", arguments.threads)
        for turn in range(arguments.rounds):
            for name in arguments.only:
                print(f"round {turn + 1}: {name}", file=sys.stderr, flush=True)
                with metaspec(repository, arguments.threads) if name == "metaspec" else triton(for_triton) as server:
                    check(server, arguments.model)
                    for mode in arguments.modes:
                        for concurrency in arguments.concurrency:
                            found = analyse(
                                program, server, mode, concurrency, arguments.batch, arguments.seconds, work
                            )
                            measured[mode, concurrency, name].append(found)
    ordered = {
        (mode, concurrency, name): measured[mode, concurrency, name]
        for mode in arguments.modes
        for concurrency in arguments.concurrency
        for name in arguments.only
    }
    print(f"{model_of(arguments.model)}, {arguments.batch} per request\n\n{table(ordered)}")


if __name__ == "__main__":
    main()
