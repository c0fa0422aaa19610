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
from metaspec_simulation import CHANNELS
from metaspec_simulation.dataset import Samples
from metaspec_training.evaluation import errors
from torch import nn

from metaspec_export.onnx import weights_sha256
from metaspec_export.parity import run

KEY = "metaspec"


def describe_training(network: nn.Module, sets: dict[str, Samples]) -> dict[str, Any]:
    """Everything that all models made from one checkpoint have in common.

    Args:
        network: that was trained.
        sets: the data sets, by name; the first is the one that errors are measured on.
    """
    samples = next(iter(sets.values()))
    return {
        "schema_version": 1,
        "process": samples.process.model_dump(mode="json"),
        "wavelengths_nm": samples.process.wavelengths_nm.tolist(),
        "channels": list(CHANNELS),
        "units": {
            "spectra": "efficiency: power through the detector / power incident on the cell",
            "wavelengths": "nm",
        },
        "input": {"name": "structure", "solid": 1.0, "void": 0.0},
        "training": {
            "network": type(network).__name__,
            "parameters": sum(weight.numel() for weight in network.parameters()),
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
    """Errors of the graph itself on the validation and test splits, as ONNX Runtime computes it."""
    measured: dict[str, Any] = {}
    gradient = len(session.get_inputs()) > 1
    for split in ("validation", "test"):
        part = samples.of(split)
        cotangent = np.zeros_like(part.spectra) if gradient else None
        prediction = run(session, part.structures, cotangent)[0]
        measured[split] = {"count": len(part), **asdict(errors(prediction, part.spectra, part.process))}
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
