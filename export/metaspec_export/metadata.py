"""What a model says of itself: JSON in the ONNX file's `metadata_props`, under the key "metaspec"."""

from __future__ import annotations

import json
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from scipy.stats import spearmanr
from torch import nn

from metaspec_contract.detectors import CHANNELS, SPREAD
from metaspec_export.graph.forward import weights_sha256
from metaspec_export.parity import run
from metaspec_simulation.dataset import Samples
from metaspec_training.networks.symmetric import SymmetricNetwork
from metaspec_training.report.evaluation import errors

KEY = "metaspec"

_EFFICIENCY = "efficiency: power through the detector / power incident on the cell"
_SPREAD = (
    "efficiency: root mean square, over {images} symmetric images of the structure and all detectors, of the deviation of the "
    "prediction by way of an image, mapped back, from the mean, which the other channels hold; the larger, the less to trust"
)


def describe_training(network: nn.Module, sets: dict[str, Samples]) -> dict[str, Any]:
    """Everything that all models made from one checkpoint have in common.

    Args:
        network: that was trained, or a `SymmetricNetwork` of it.
        sets: the data sets, by name; the first is the one that errors are measured on.
    """
    samples = next(iter(sets.values()))
    images = len(network.images) if isinstance(network, SymmetricNetwork) else 1
    trained = network.network if isinstance(network, SymmetricNetwork) else network
    channels, units = list(CHANNELS), {"spectra": _EFFICIENCY, "wavelengths": "nm"}
    if images > 1:
        channels.append(SPREAD)
        units[SPREAD] = _SPREAD.format(images=images)
    return {
        "schema_version": 1,
        "process": samples.process.model_dump(mode="json"),
        "wavelengths_nm": samples.process.wavelengths_nm.tolist(),
        "channels": channels,
        "units": units,
        "input": {"name": "structure", "solid": 1.0, "void": 0.0},
        "forward_passes": images,
        "training": {
            "network": type(trained).__name__,
            "parameters": sum(weight.numel() for weight in trained.parameters()),
            "data": [
                {
                    "name": name,
                    "structures": len(part.of("train")),
                    **{key: part.attributes[key] for key in ("solver", "made_with")},
                }
                for name, part in sets.items()
            ],
        },
        "source_revision": _revision(),
        "made_with": {"torch": torch.__version__, "onnx": onnx.__version__, "onnxruntime": ort.__version__},
    }


def measure(session: ort.InferenceSession, samples: Samples) -> dict[str, Any]:
    """Errors of the graph itself on the validation and test splits, as ONNX Runtime computes it.

    Of a graph with a spread, also how large it is (the mean over wavelengths: 10, 50, 90 and 99 of 100 structures stay below
    the quantiles), and Spearman's rank correlation with the mean absolute error.
    """
    measured: dict[str, Any] = {}
    gradient = len(session.get_inputs()) > 1
    for split in ("validation", "test"):
        part = samples.of(split)
        shape = (len(part), *session.get_outputs()[0].shape[1:])
        cotangent = np.zeros(shape, np.float32) if gradient else None
        prediction, spread = np.split(run(session, part.structures, cotangent)[0], [len(CHANNELS)], axis=1)
        measured[split] = {"count": len(part), **asdict(errors(prediction, part.spectra, part.process))}
        if spread.size:
            each, error = spread.mean(axis=(1, 2)), np.abs(prediction - part.spectra).mean(axis=(1, 2))
            measured[split][SPREAD] = {
                "quantiles": {str(share): float(np.quantile(each, share)) for share in (0.1, 0.5, 0.9, 0.99)},
                "rank_correlation_with_error": float(spearmanr(each, error).statistic),
            }
    return measured


def attach(model: onnx.ModelProto, metadata: dict[str, Any]) -> None:
    """Write metadata and the SHA-256 of the weights into a model, in place of what it had."""
    metadata["weights_sha256"] = weights_sha256(model)
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, {KEY: json.dumps(metadata)})


def read(model: onnx.ModelProto) -> dict[str, Any]:
    """The metadata of a model.

    Raises:
        ValueError: it has none.
    """
    properties = {entry.key: entry.value for entry in model.metadata_props}
    if KEY not in properties:
        raise ValueError(f'no "{KEY}" entry in metadata_props: not a file of metaspec-export')
    metadata: dict[str, Any] = json.loads(properties[KEY])
    return metadata


def _revision() -> str:
    """Commit of the source tree, if this is one."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
