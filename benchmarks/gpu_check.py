"""The bundled models on this machine's GPU: placement, deviation from the CPU, structures per second, the server under load.

    make gpu-check [ARGS="--out FILE.md"]

makes an environment with ONNX Runtime for CUDA and runs this in it; the tables go to FILE.md, and all that was measured to
FILE.json beside it, after each part. Where PyTorch with CUDA and the laboratory are installed as well, PyTorch is measured,
too; where TensorRT is, TensorRT. `--provider cpu` runs the same on a CPU.

The exit status is 1 if an answer was wrong or a part failed, and 2 where there is no GPU to check.
"""

from __future__ import annotations

import argparse
import ctypes
import datetime
import importlib.metadata
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:  # until there is a GPU, nothing needs to be installed
    from gpu_measurements import Model

Measured: TypeAlias = dict[str, Any]

ROOT = Path(__file__).parents[1]
REQUIREMENTS = ROOT / "requirements" / "serve-gpu.txt"
CHECKPOINT = ROOT / "training" / "checkpoints" / "field.ckpt"  # of the bundled diffractionnet
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
LOADS = ((1, 1), (16, 1), (64, 1), (1, 64), (16, 64), (64, 64))
SERVERS: dict[str, list[str]] = {
    "default": [],
    "--max-batch 256": ["--max-batch", "256"],
    "--max-batch 256 --cuda-graphs": ["--max-batch", "256", "--cuda-graphs"],
}
TOLERANCES = {"fp32": 1e-4, "fp32 with TF32": 1e-2, "fp16": 2e-2, "int8": 2e-2}
"""Deviations from the CPU beyond which an output is wrong, as shares of its largest value."""


def missing_gpu() -> str | None:
    """What this machine lacks to compute on a GPU; None if nothing."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "no NVIDIA driver on this machine: libcuda.so.1 is not found"
    number = ctypes.c_int()
    if status := driver.cuInit(0):
        return f"the NVIDIA driver finds no usable GPU: cuInit returns {status}"
    driver.cuDeviceGetCount(ctypes.byref(number))
    if number.value == 0:
        return "the NVIDIA driver finds no GPU"
    driver.cuDriverGetVersion(ctypes.byref(number))
    runtime = re.search(r"^nvidia-cuda-runtime==(\d+)", REQUIREMENTS.read_text(), re.MULTILINE)
    if runtime and number.value // 1000 < int(runtime[1]):
        return f"the NVIDIA driver is for CUDA {number.value // 1000}, {REQUIREMENTS.name} needs CUDA {runtime[1]}"
    return None


def missing_package() -> str | None:
    """What this environment lacks to compute on a GPU; None if nothing."""
    wanted = f"pip install -r {REQUIREMENTS.relative_to(ROOT)}, or make gpu-check"
    try:
        import onnxruntime
    except ImportError:
        return f"onnxruntime is not installed: {wanted}"
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        return f"onnxruntime {onnxruntime.__version__} here was built without CUDA: {wanted}"
    return None


def machine(provider: str) -> Measured:
    """Date, processor and, for a GPU, card and driver; versions of what computes."""
    names = ("onnxruntime", "onnxruntime-gpu", "nvidia-cuda-runtime", "nvidia-cudnn-cu13", "numpy", "torch")
    versions = {}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    found: Measured = {
        "date": datetime.date.today().isoformat(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **versions,
    }
    if provider != "cpu":
        query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.used", "--format=csv,noheader"]
        try:
            listed = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True).stdout
            found["gpus"] = listed.strip().splitlines()
        except (OSError, subprocess.SubprocessError) as error:
            found["gpus"] = [f"unknown: {error}"]
    return found


def pytorch(sizes: Sequence[int], seconds: float, device: str) -> Measured:
    """Structures per second of the bundled network in PyTorch, eager and compiled, forward and gradient.

    Raises:
        ImportError: PyTorch for this device or the laboratory is not installed.
    """
    import torch
    from gpu_measurements import median, structures
    from weights_hash import weights_hash

    from metaspec_training.fit.checkpoint import load_network

    if device == "cuda" and not torch.cuda.is_available():
        raise ImportError("PyTorch here does not reach the GPU")
    network = load_network(CHECKPOINT).eval()
    report: Measured = {"weights": weights_hash(network)}
    network = network.to(device).requires_grad_(False)
    ways: dict[str, Any] = {"eager": network, "compiled": torch.compile(network, dynamic=False)}
    for name, run in ways.items():
        for size in sizes:
            density = torch.from_numpy(structures(size)[:, None]).float().to(device)
            with torch.no_grad():
                cotangent = torch.randn_like(run(density))

            def forward(run: Any = run, density: torch.Tensor = density) -> None:
                with torch.no_grad():
                    run(density).sum().item()

            def gradient(run: Any = run, density: torch.Tensor = density, at: torch.Tensor = cotangent) -> None:
                density = density.detach().requires_grad_()
                torch.autograd.grad(run(density), density, at)[0].sum().item()

            for kind, call in {"forward": forward, "gradient": gradient}.items():
                for _ in range(3):
                    call()
                report[f"{name} {kind} {size}"] = size / median(call, seconds)
    return report


class Report:
    """Everything measured so far; each part stands alone, and the file is written after each.

    Args:
        path: path of the JSON file.
        found: what is known at the start.
    """

    def __init__(self, path: Path, found: Measured) -> None:
        self.found: Measured = {**found, "models": {}, "server": {}, "failed": {}}
        self._path = path

    def part(self, name: str, into: Measured, key: str, measure: Callable[..., Measured], *arguments: object) -> None:
        """Measure a part and keep it, or why it failed."""
        from metaspec_contract.files import write_json

        print(f"gpu_check: {name}", file=sys.stderr, flush=True)
        try:
            into[key] = measure(*arguments)
        except Exception as error:  # whatever ONNX Runtime raises on a GPU: the other parts are of use
            self.fail(name, f"{type(error).__name__}: {error}")
        write_json(self._path, self.found)

    def fail(self, name: str, reason: str) -> None:
        """Keep a failure."""
        self.found["failed"][name] = " ".join(reason.split())[:500]


def where_available(measure: Callable[..., Measured], *arguments: object) -> Measured:
    """A measurement, or why it cannot be made here."""
    from gpu_measurements import Unavailable

    try:
        return measure(*arguments)
    except (Unavailable, ImportError) as error:
        return {"not measured": str(error)}


def check(arguments: argparse.Namespace, report: Report) -> None:
    """Measure everything."""
    import gpu_measurements as measure

    from metaspec_contract.model import gradient_model

    models = measure.models_of(arguments.models)
    if not models:
        raise FileNotFoundError(f"{arguments.models}: no model in it")
    main = "diffractionnet" if "diffractionnet" in models else next(iter(models))
    measure.open_session(models[main], arguments.provider)  # without it nothing can be measured
    sizes, seconds, provider = arguments.sizes, arguments.seconds, arguments.provider
    few = sorted({sizes[0], sizes[len(sizes) // 2], sizes[-1]})
    for name, model in models.items():
        into: Measured = {"weights": model.weights, "passes": model.passes}
        report.found["models"][name] = into
        own = [
            size
            for size in (sizes if name in (main, gradient_model(main)) else few)
            if size * model.passes <= sizes[-1]
        ]
        report.part(f"{name}: placement", into, "placement", measure.placement, model, provider)
        report.part(f"{name}: work", into, "work", measure.work, model)
        report.part(f"{name}: parity", into, "parity", measure.parity, model, provider, arguments.structures)
        check_parity(name, model, into, report)
        report.part(f"{name}: speed", into, "speed", measure.speed, model, provider, own, seconds)
        if provider == "cuda":
            report.part(f"{name}: CUDA graphs", into, "graphs", measure.speed, model, provider, own, seconds, True)
            tensorrt = (measure.speed, model, "tensorrt", own[:1], seconds)
            report.part(f"{name}: TensorRT", into, "tensorrt", where_available, *tensorrt)
    served = measure.Requests(models, main, 64)
    for name, flags in SERVERS.items():
        if provider == "cpu" and flags:
            continue
        into, loads = report.found["server"], arguments.loads
        report.part(f"server, {name}", into, name, measure.serve, served, provider, flags, loads, seconds)
        for load, answers in into.get(name, {}).items():
            if isinstance(answers, dict) and answers["deviation"] > TOLERANCES["fp32 with TF32"]:
                report.fail(f"server, {name}, {load}", f"deviates by {answers['deviation']:.1e} of the largest value")
    if provider == "cuda":
        report.part("PyTorch", report.found, "pytorch", where_available, pytorch, few, seconds, "cuda")


def check_parity(name: str, model: Model, into: Measured, report: Report) -> None:
    """Hold the deviations of a model's outputs against the tolerances."""
    for mode, outputs in into.get("parity", {}).items():
        for output, found in outputs.items():
            kind = "fp32 with TF32" if model.precision == "fp32" and mode == "TF32 on" else model.precision
            if found["largest"] > TOLERANCES[kind] * found["of"]:
                report.fail(f"{name}: {output}, {mode}", f"deviates by {found['largest']:.1e} of {found['of']:.2g}")


def tables(found: Measured) -> str:
    """All tables in Markdown."""
    lines = [", ".join(f"{name} {value}" for name, value in found["machine"].items()), ""]
    lines += ["| model | weights | GFLOP | MB | nodes: CUDA, CPU | copies |", "|---|---|---|---|---|---|"]
    for name, model in found["models"].items():
        nodes = model.get("placement", {}).get("nodes", {})
        count = [sum(nodes.get(f"{p}ExecutionProvider", {}).values()) for p in ("CUDA", "CPU")]
        gflop, mb = (f"{model['work'][key]:.3g}" if "work" in model else "" for key in ("gflop", "mb"))
        copies = model.get("placement", {}).get("copies", "")
        lines.append(f"| `{name}` | {model['weights']} | {gflop} | {mb} | {count[0]}, {count[1]} | {copies} |")
    lines += ["", "| model | output | | largest deviation | mean | largest value |", "|---|---|---|---|---|---|"]
    for name, model in found["models"].items():
        for mode, outputs in model.get("parity", {}).items():
            for output, d in outputs.items():
                lines.append(f"| `{name}` | {output} | {mode} | {d['largest']:.1e} | {d['mean']:.1e} | {d['of']:.2g} |")
    lines += [
        "",
        "| model | | batch | ms | structures/s | with copies | first, s | replay deviates |",
        "|---" * 8 + "|",
    ]
    for name, model in found["models"].items():
        for way in ("speed", "graphs", "tensorrt"):
            measured = model.get(way, {})
            if "not measured" in measured:
                lines.append(f"| `{name}` | {way}: not measured: {measured['not measured']} | | | | | | |")
            for size, row in measured.get("sizes", {}).items():
                rates = [int(size) / row[key] for key in ("s", "s_with_copies")]
                replay = f"{row['replay']:.1e}" if "replay" in row else ""
                lines.append(
                    f"| `{name}` | {way} | {size} | {1000 * row['s']:.2f} | {rates[0]:.0f} | {rates[1]:.0f} "
                    f"| {row['first_s']:.2f} | {replay} |"
                )
            for size, taken in measured.get("s_after_another_size", {}).items():
                lines.append(f"| `{name}` | {way}, after the largest | {size} | {1000 * taken:.2f} | | | | |")
    lines += ["", "| server | callers x structures | structures/s | p50 ms | p99 ms | deviation |", "|---" * 6 + "|"]
    for name, loads in found["server"].items():
        for load, m in loads.items():
            if isinstance(m, dict):
                lines.append(
                    f"| {name} | {load} | {m['per_s']:.0f} | {1000 * m['p50_s']:.1f} | {1000 * m['p99_s']:.1f} "
                    f"| {m['deviation']:.1e} |"
                )
    if "pytorch" in found:
        lines += ["", "| PyTorch | |", "|---|---|"]
        lines += [f"| {k} | {v if isinstance(v, str) else format(v, '.0f')} |" for k, v in found["pytorch"].items()]
    lines += [f"\nfailed: {name}: {reason}" for name, reason in found["failed"].items()]
    return "\n".join(lines)


def refuse(reason: str) -> int:
    print(f"gpu_check: {reason}", file=sys.stderr)
    return 2


def positive(text: str) -> int:
    """A whole number of at least 1."""
    if (number := int(text)) < 1:
        raise ValueError
    return number


def load(text: str) -> tuple[int, int]:
    """A load such as 16x64: callers x structures."""
    callers, _, batch = text.partition("x")
    return positive(callers), positive(batch)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=ROOT / "server" / "models", help="model repository")
    parser.add_argument("--provider", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "gpu_check.md", help="file of the tables")
    parser.add_argument("--sizes", type=positive, nargs="+", default=SIZES, help="batch sizes")
    parser.add_argument("--loads", type=load, nargs="+", default=LOADS, help="loads of the server, such as 16x64")
    parser.add_argument("--structures", type=positive, default=32, help="number of structures to compare with the CPU")
    parser.add_argument("--seconds", type=float, default=1.0, help="duration of each measurement")
    parser.add_argument("--find-gpu", action="store_true", help="only see whether there is a GPU")
    arguments = parser.parse_args()
    if arguments.provider == "cuda" and (reason := missing_gpu()):
        return refuse(reason)
    if arguments.find_gpu:
        return 0
    if arguments.provider == "cuda" and (reason := missing_package()):
        return refuse(reason)

    from gpu_measurements import Unavailable

    from metaspec_contract.files import write_text
    from metaspec_server.repository import RepositoryError

    arguments.sizes = sorted(set(arguments.sizes))
    report = Report(arguments.out.with_suffix(".json"), {"machine": machine(arguments.provider)})
    try:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        check(arguments, report)
        text = tables(report.found)
        write_text(arguments.out, text + "\n")
    except KeyboardInterrupt:
        print("gpu_check: interrupted", file=sys.stderr)
        return 130
    except (OSError, RepositoryError, Unavailable) as error:
        return refuse(str(error))
    print(text)
    return 1 if report.found["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
