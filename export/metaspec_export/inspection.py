"""Inspection of a model repository: each version is held against its metadata, as the server does before it serves one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from rich.table import Table

from metaspec_contract.model import (
    ModelMetadata,
    ModelMismatch,
    check_answers,
    check_folder,
    check_same_device,
    check_tensors,
    forward_model,
    parse_metadata,
    probes,
)
from metaspec_contract.provenance import DataSource
from metaspec_export.card import MERGED_GREENS
from metaspec_export.metadata import properties, tensors, weights_sha256

_ROWS = (1, 8)
"""Batch sizes that a model is tried with: one empty structure; empty, full and random ones."""


@dataclass(frozen=True)
class Inspected:
    """One version of one model.

    Attributes:
        path: the file.
        metadata: its metadata; None if they cannot be read.
        hashed: whether its metadata hold the hash of the exported weights, so that a change would show.
        problem: why the server would not serve it, or what is damaged; None if it is sound.
        providers: execution providers of this machine's ONNX Runtime that run it.
        megabytes: size of the file in MiB.
    """

    path: Path
    metadata: ModelMetadata | None
    hashed: bool
    problem: str | None
    providers: tuple[str, ...]
    megabytes: float

    @property
    def name(self) -> str:
        """Folder of the model."""
        return self.path.parts[-3]

    @property
    def version(self) -> str:
        """Folder of the version."""
        return self.path.parts[-2]

    def measured(self, *keys: str) -> float | None:
        """A number that the export measured, by its keys in the metadata; None if it is not there."""
        value: Any = self.metadata and self.metadata.model_extra
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        return float(value) if isinstance(value, int | float) else None


def inspect(repository: Path) -> list[Inspected]:
    """Read, check and run every version of every model.

    Raises:
        ValueError: there is no model.
    """
    files = _files(repository, "*")
    if not files:
        raise ValueError(f"{repository}: no model here; expected <model>/<version>/model.onnx")
    found: list[Inspected] = []
    newest: dict[str, Inspected] = {}  # sound ones; a forward model comes before its gradient model
    for model in map(_inspect, files):
        for other in (newest.get(model.name), newest.get(forward_model(model.name))):
            if other is not None and model.problem is None:
                model = _compared(model, other)
        found.append(model)
        if model.problem is None:
            newest[model.name] = model
    return found


def newest_metadata(repository: Path, name: str) -> ModelMetadata | None:
    """Metadata of the newest version of a model; None if there is no version, or they cannot be read."""
    files = _files(repository, name)
    try:
        return parse_metadata(properties(_load(files[-1]))) if files else None
    except ModelMismatch:
        return None


def _files(repository: Path, name: str) -> list[Path]:
    """Model files by name and ascending version."""
    files = (path for path in repository.glob(f"{name}/*/model.onnx") if path.parent.name.isdecimal())
    return sorted(files, key=lambda path: (path.parts[-3], int(path.parts[-2])))


def _compared(model: Inspected, other: Inspected) -> Inspected:
    """A sound model, held against the version that it replaces or its forward model, which must be of the same device."""
    assert model.metadata is not None
    assert other.metadata is not None
    ours, theirs = (f"{one.name} {one.version}" for one in (model, other))
    try:
        check_same_device(model.metadata, other.metadata, ours, theirs)
    except ModelMismatch as error:
        return replace(model, problem=str(error))
    return model


def _inspect(path: Path) -> Inspected:
    metadata: ModelMetadata | None = None
    hashed, problem = False, None
    providers: tuple[str, ...] = ()
    try:
        model = _load(path)
        metadata = parse_metadata(properties(model))
        exported = (metadata.model_extra or {}).get("weights_sha256")
        hashed = exported is not None
        providers = _providers(path)
        _check(path, model, metadata)
        if hashed and exported != weights_sha256(model):
            problem = "the weights are not those that were exported: SHA-256 differs"
    except ModelMismatch as error:
        problem = str(error)
    return Inspected(path, metadata, hashed, problem, providers, path.stat().st_size / 2**20)


def _load(path: Path) -> onnx.ModelProto:
    try:
        return onnx.load(path)
    except Exception as error:  # a damaged file may raise anything
        raise ModelMismatch(f"cannot be read: {_first_line(error)}") from error


def _check(path: Path, model: onnx.ModelProto, metadata: ModelMetadata) -> None:
    """Hold a model against its metadata: its folder, its tensors, and its answers to probes on the CPU.

    Raises:
        ModelMismatch: they contradict each other.
    """
    check_folder(metadata, path.parts[-3])
    check_tensors(metadata, *tensors(model))
    try:
        session = _session(path, "CPUExecutionProvider")
    except Exception as error:  # ONNX Runtime has no base class for what a damaged graph raises
        raise ModelMismatch(f"ONNX Runtime cannot load it: {_first_line(error)}") from error
    require_answers(session, metadata)


def require_answers(session: ort.InferenceSession, metadata: ModelMetadata) -> None:
    """Run a model on empty, full and random structures, and hold its answers against its metadata.

    Args:
        session: the loaded model.
        metadata: its metadata.

    Raises:
        ModelMismatch: it fails, or an answer is of another shape or not finite.
    """
    names = list(metadata.tensors[1])
    for rows in _ROWS:
        try:
            answers = session.run(names, probes(metadata, rows))
        except Exception as error:
            raise ModelMismatch(f"it fails on {rows} structures: {_first_line(error)}") from error
        check_answers(metadata, dict(zip(names, answers, strict=True)), rows)


def _session(path: Path, provider: str) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    if provider != "CPUExecutionProvider":  # what a provider leaves to the CPU, it does not run
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    return ort.InferenceSession(path, options, providers=[provider])


def _providers(path: Path) -> tuple[str, ...]:
    """Providers of this machine that load the file and compute one row."""
    running = []
    for provider in ort.get_available_providers():
        try:
            session = _session(path, provider)
            if session.get_providers()[0] != provider:
                continue  # ONNX Runtime fell back to another one
            session.run(
                None, {value.name: np.zeros((1, *value.shape[1:]), np.float32) for value in session.get_inputs()}
            )
        except Exception:  # that a provider cannot run it is an answer here
            continue
        running.append(provider.removesuffix("ExecutionProvider"))
    return tuple(running)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__


def table(models: list[Inspected]) -> Table:
    """The result as a table, one row for each version."""
    view = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for column in ("model", "v", "MiB", "MAE", "differs", "gradient", "state", "runs on"):
        view.add_column(column, no_wrap=True)
    for model in models:
        view.add_row(
            model.name,
            model.version,
            f"{model.megabytes:.1f}",
            _number(model.measured("metrics", "test", "mae"), ".4f"),
            _number(model.measured("tolerance", "measured"), ".0e"),
            _number(model.measured("tolerance", "gradient", "measured"), ".0e"),
            "BROKEN" if model.problem else "intact" if model.hashed else "no hash",
            ", ".join(model.providers) or "nothing",
        )
    return view


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def remarks(models: list[Inspected]) -> list[str]:
    """Lines below the table: what is wrong, what each model knows, and where it comes from."""
    lines = [f"{model.path}: {model.problem}" for model in models if model.problem]
    origins: dict[str, list[str]] = {}
    merged = []
    for model in models:
        if model.metadata is None:
            continue
        if model.metadata.merged_greens:
            merged.append(f"{model.name} {model.version}")
        if model.metadata.training is not None:
            origins.setdefault(_origin(model.metadata), []).append(f"{model.name} {model.version}")
    lines += [f"{', '.join(names)}: {origin}." for origin, names in origins.items()]
    if merged:
        lines.append(f"{', '.join(merged)}: {MERGED_GREENS[0].lower()}{MERGED_GREENS[1:]}")
    lines.append(
        '"MAE": on the test split, measured on the file itself. "differs": largest difference of an efficiency, from PyTorch '
        'for float32 and from float32 for other precisions; "gradient": the same for the gradient, relative. "state": '
        "intact if a server would serve it and its weights have the SHA-256 of the export."
    )
    return lines


def _origin(metadata: ModelMetadata) -> str:
    """Network, data, device and source revision of a model in words."""
    training, process, wavelengths = metadata.training, metadata.process, metadata.wavelengths_nm
    assert training is not None
    sources = [part.model_dump() if isinstance(part, DataSource) else part for part in training.data]
    data = " and ".join(f"{part.get('structures', '?')} structures of {part.get('name', '?')}" for part in sources)
    return (
        f"{training.network}, {training.parameters / 1e6:.1f} million parameters, trained on {data}; period "
        f"{process.period_um:g} um, {wavelengths[0]:g} to {wavelengths[-1]:g} nm; source "
        f"{(metadata.model_extra or {}).get('source_revision', 'unknown')}"
    )
