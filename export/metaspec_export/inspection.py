"""What lies in a model repository: each version's own description, whether its weights are intact, and where it runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from rich import box
from rich.table import Table

from metaspec_export import metadata
from metaspec_export.graph.forward import weights_sha256


@dataclass(frozen=True)
class Inspected:
    """One version of one model.

    Attributes:
        name: of the model.
        version: its number.
        metadata: what the file says of itself; empty if it cannot be read.
        problem: what is wrong with it, or None.
        providers: execution providers of this machine's ONNX Runtime that run it.
        megabytes: size of the file.
    """

    name: str
    version: int
    metadata: dict[str, Any]
    problem: str | None
    providers: tuple[str, ...]
    megabytes: float


def inspect(repository: Path) -> list[Inspected]:
    """Read, verify and try every version of every model.

    Raises:
        ValueError: there is no model.
    """
    files = sorted(
        (path for path in repository.glob("*/*/model.onnx") if path.parent.name.isdigit()),
        key=lambda path: (path.parts[-3], int(path.parts[-2])),
    )
    if not files:
        raise ValueError(f"{repository}: no model here; expected <model>/<version>/model.onnx")
    return [_inspect(path) for path in files]


def _inspect(path: Path) -> Inspected:
    described: dict[str, Any] = {}
    problem: str | None = None
    providers: tuple[str, ...] = ()
    try:
        model = onnx.load(path)
        described = metadata.read(model)
        if described["weights_sha256"] != weights_sha256(model):
            problem = "the weights are not those that were exported: SHA-256 differs"
        providers = _providers(path)
    except Exception as error:  # a damaged file may raise anything
        problem = f"cannot be read: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
    size = path.stat().st_size / 2**20
    return Inspected(path.parts[-3], int(path.parts[-2]), described, problem, providers, size)


def _providers(path: Path) -> tuple[str, ...]:
    """Providers of this machine that load the file and compute one row."""
    running = []
    for provider in ort.get_available_providers():
        options = ort.SessionOptions()
        options.log_severity_level = 4
        if provider != "CPUExecutionProvider":  # what a provider leaves to the CPU, it does not run
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        try:
            session = ort.InferenceSession(path, options, providers=[provider])
            if session.get_providers()[0] != provider:
                continue  # ONNX Runtime fell back to another one
            session.run(
                None, {value.name: np.zeros((1, *value.shape[1:]), np.float32) for value in session.get_inputs()}
            )
        except Exception:  # a provider that cannot run it is what is asked for
            continue
        running.append(provider.removesuffix("ExecutionProvider"))
    return tuple(running)


def table(models: list[Inspected]) -> Table:
    """The result for people, one row a model."""
    view = Table(box=box.SIMPLE, pad_edge=False, padding=(0, 1, 0, 0))
    for column in ("model", "v", "MiB", "MAE", "differs", "gradient", "weights", "runs on"):
        view.add_column(column, no_wrap=True)
    for model in models:
        told = model.metadata
        tolerance = told.get("tolerance", {})
        view.add_row(
            model.name,
            str(model.version),
            f"{model.megabytes:.1f}",
            f"{told['metrics']['test']['mae']:.4f}" if "metrics" in told else "",
            f"{tolerance['measured']:.0e}" if "measured" in tolerance else "",
            f"{tolerance['gradient']['measured']:.0e}" if "gradient" in tolerance else "",
            "BROKEN" if model.problem else "intact",
            ", ".join(model.providers) or "nothing",
        )
    return view


def remarks(models: list[Inspected]) -> list[str]:
    """What the table has no room for: what is wrong, and where each model comes from."""
    lines = [f"{model.name} version {model.version}: {model.problem}" for model in models if model.problem]
    origins: dict[str, list[str]] = {}
    for model in models:
        if "training" in model.metadata:
            training = model.metadata["training"]
            data = " and ".join(f"{part['structures']} structures of {part['name']}" for part in training["data"])
            origin = (
                f"{training['network']}, {training['parameters'] / 1e6:.1f} million parameters, trained on {data}, "
                f"source {model.metadata['source_revision']}"
            )
            origins.setdefault(origin, []).append(f"{model.name} {model.version}")
    lines += [f"{', '.join(names)}: {origin}." for origin, names in origins.items()]
    lines.append(
        '"MAE": on the test split, measured on the file itself. "differs": largest difference of an efficiency, from PyTorch '
        'for float32 and from float32 for other precisions; "gradient": the same of the gradient, relative. "weights": '
        "whether their SHA-256 is that of the export."
    )
    return lines
