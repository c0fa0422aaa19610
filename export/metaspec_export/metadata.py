"""Metadata of a model: facts of the checkpoint, measured errors, and their way into the ONNX file's `metadata_props`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from onnx import numpy_helper
from pydantic import ConfigDict, Field
from scipy.stats import spearmanr

from metaspec_contract.conditions import check_conditions
from metaspec_contract.detectors import CHANNELS, SPREAD
from metaspec_contract.model import (
    CONDITIONS_VERSION,
    METADATA_KEY,
    SCHEMA_VERSION,
    STRUCTURE,
    ModelMetadata,
    ModelMismatch,
    TensorSpec,
    Training,
    check_tensors,
    parse_metadata,
)
from metaspec_export.parity import spectra_of
from metaspec_export.precision import Precision
from metaspec_export.source import Source
from metaspec_training.networks.layers import conditions_of
from metaspec_training.networks.symmetric import SymmetricNetwork
from metaspec_training.report.evaluation import errors, uselessness

_EFFICIENCY = "efficiency: power through the detector / power incident on the cell"
_SPREAD = (
    "efficiency: root mean square, over {images} symmetric images of the structure and all detectors, of the deviation of the "
    "prediction for an image, mapped back, from the mean that the other channels hold; the larger, the less reliable"
)


class ExportedMetadata(ModelMetadata):
    """Metadata that the export writes: those of the contract, and what it measured.

    Attributes:
        training: how the network was trained.
        precision: precision of the graph.
        tolerance: allowed and measured difference from PyTorch for fp32, from fp32 for other precisions; gradients likewise.
        deviation: `Deviation` from fp32; empty for fp32.
        metrics: errors by split, and there, as `mean_spectrum_mae`, that of the mean spectrum of the training data.
        evaluated_on: name of the data set that errors were measured on.
        source_revision: revision of the code.
        made_with: versions of the packages.
        weights_sha256: SHA-256 of the weights, see `weights_sha256`.
        network_sha256: SHA-256 of the trained network, see `network_sha256`; "" in models of earlier releases.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    training: Training
    precision: Precision
    tolerance: dict[str, Any]
    deviation: dict[str, Any] = Field(default_factory=dict)
    metrics: dict[str, Any]
    evaluated_on: str = ""
    source_revision: str
    made_with: dict[str, str]
    weights_sha256: str
    network_sha256: str = ""

    @property
    def warning(self) -> str | None:
        """What a user of a network that has learnt hardly anything must know, None for a better one."""
        test = self.metrics["test"]
        trivial = test.get("mean_spectrum_mae")
        return None if trivial is None else uselessness(test["mae"], trivial)


def common_facts(source: Source, images: int, revision: str) -> dict[str, Any]:
    """Metadata that all models made from one checkpoint have in common.

    Args:
        source: network and provenance.
        images: symmetric images that predictions are averaged over; 1 for the plain network.
        revision: revision of the code.
    """
    network, provenance = source.network, source.provenance
    conditions = [condition.model_dump(mode="json") for condition in conditions_of(network)]
    channels, units = list(provenance.channels), {"spectra": _EFFICIENCY, "wavelengths": "nm"}
    if images > 1:
        channels.append(SPREAD)
        units[SPREAD] = _SPREAD.format(images=images)
    training = Training(
        network=type(network).__name__,
        parameters=sum(weight.numel() for weight in network.parameters()),
        preset=provenance.preset,
        data=list(provenance.data),
    )
    return {
        "schema_version": CONDITIONS_VERSION if conditions else SCHEMA_VERSION,
        "process": provenance.process.model_dump(mode="json"),
        "wavelengths_nm": provenance.process.wavelengths_nm.tolist(),
        "channels": channels,
        "merged_greens": provenance.merged_greens,
        "units": units,
        "input": {"name": STRUCTURE, "solid": 1.0, "void": 0.0},
        "conditions": conditions,
        "forward_passes": images,
        "training": training.model_dump(mode="json"),
        "evaluated_on": source.evaluated_on,
        "source_revision": revision,
        "network_sha256": network_sha256(network),
        "made_with": {"torch": torch.__version__, "onnx": onnx.__version__, "onnxruntime": ort.__version__},
    }


def measure(session: ort.InferenceSession, source: Source) -> dict[str, Any]:
    """Errors of the graph itself on the validation and test splits, as ONNX Runtime computes it, at defaults of conditions.

    For a graph with a spread, also quantiles of its mean over wavelengths, and Spearman's rank correlation of that mean
    with the mean absolute error.

    Args:
        session: the loaded graph.
        source: samples of the splits, and the mean spectrum that they are compared with.
    """
    measured: dict[str, Any] = {}
    for split in ("validation", "test"):
        part = source.samples.of(split)
        default = check_conditions(conditions_of(source.network), {}, len(part))
        spectra = spectra_of(session, part.structures, default)
        prediction, spread = np.split(spectra, [len(CHANNELS)], axis=1)
        measured[split] = {
            "count": len(part),
            "of": source.counts[split],
            **asdict(errors(prediction, part.spectra, part.process)),
        }
        if source.mean_spectrum is not None:
            measured[split]["mean_spectrum_mae"] = float(np.abs(source.mean_spectrum - part.spectra).mean())
        if spread.size:
            each, error = spread.mean(axis=(1, 2)), np.abs(prediction - part.spectra).mean(axis=(1, 2))
            measured[split][SPREAD] = {
                "quantiles": {str(share): float(np.quantile(each, share)) for share in (0.1, 0.5, 0.9, 0.99)},
                "rank_correlation_with_error": float(spearmanr(each, error).statistic),
            }
    return measured


def attach(model: onnx.ModelProto, facts: dict[str, Any]) -> ExportedMetadata:
    """Write metadata into a model, in place of what it had, once they are complete and agree with its tensors.

    Args:
        model: graph, changed in place.
        facts: fields of `ExportedMetadata`, except for the hash of the weights.

    Raises:
        ValueError: they are incomplete, or contradict themselves or the graph.
    """
    metadata = ExportedMetadata.model_validate(facts | {"weights_sha256": weights_sha256(model)})
    check_tensors(metadata, *tensors(model))
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, {METADATA_KEY: metadata.model_dump_json()})
    return metadata


def read(model: onnx.ModelProto) -> ExportedMetadata:
    """The metadata of an exported model.

    Raises:
        ModelMismatch: there are none, or they are incomplete or contradict themselves.
    """
    found = properties(model)
    parse_metadata(found)
    return ExportedMetadata.model_validate_json(found[METADATA_KEY])


def properties(model: onnx.ModelProto) -> dict[str, str]:
    """The `metadata_props` of a model."""
    return {entry.key: entry.value for entry in model.metadata_props}


def tensors(model: onnx.ModelProto) -> tuple[list[TensorSpec], list[TensorSpec]]:
    """Inputs and outputs of a graph, without the batch axis.

    Raises:
        ModelMismatch: a tensor is not of float32 with a free batch axis first and fixed axes after it.
    """
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = _specs("input", (value for value in model.graph.input if value.name not in weights))
    return inputs, _specs("output", model.graph.output)


def _specs(kind: str, values: Iterable[onnx.ValueInfoProto]) -> list[TensorSpec]:
    specs = []
    for value in values:
        described = value.type.tensor_type
        if described.elem_type != onnx.TensorProto.FLOAT:
            name = onnx.TensorProto.DataType.Name(described.elem_type)
            raise ModelMismatch(f"{kind} {value.name} has type {name}, expected FLOAT (float32)")
        sizes = [dim.dim_value if dim.HasField("dim_value") else None for dim in described.shape.dim]
        fixed = [size for size in sizes[1:] if size is not None]
        if not sizes or sizes[0] is not None or len(fixed) != len(sizes) - 1:
            shape = ["N" if size is None else size for size in sizes]
            raise ModelMismatch(f"{kind} {value.name} has shape {shape}, expected a free batch axis, then fixed axes")
        specs.append(TensorSpec(value.name, np.dtype(np.float32), tuple(fixed)))
    return specs


def weights_sha256(model: onnx.ModelProto) -> str:
    """SHA-256 over the initializers: each one's name, then its raw little-endian bytes, in order of name."""
    digest = hashlib.sha256()
    for tensor in sorted(model.graph.initializer, key=lambda tensor: tensor.name):
        array = numpy_helper.to_array(tensor)
        digest.update(tensor.name.encode())
        digest.update(array.astype(array.dtype.newbyteorder("<")).tobytes())
    return digest.hexdigest()


def network_sha256(network: torch.nn.Module) -> str:
    """SHA-256 over the trained weights: each one's name, then its little-endian float32 bytes, in order of name.

    All models of a network have it in common, in every precision and over symmetric images, however the graph is written: what
    was measured of the network's predictions holds for them all, within their stated deviations.
    """
    while isinstance(inner := getattr(network, "network", None), torch.nn.Module):
        network = inner
    digest = hashlib.sha256()
    for name, weight in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(weight.detach().cpu().numpy().astype("<f4").tobytes())
    return digest.hexdigest()


def images_of(network: torch.nn.Module) -> int:
    """Symmetric images that a network's predictions are averaged over."""
    return len(network.images) if isinstance(network, SymmetricNetwork) else 1
