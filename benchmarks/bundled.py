"""The bundled models as benchmarks run them: the newest version of each, conditions at their defaults, named by a hash."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from metaspec_contract.conditions import check_conditions
from metaspec_contract.model import DEFAULT_MODEL, STRUCTURE, ModelMetadata, parse_metadata
from metaspec_server.settings import bundled_repository


def newest(name: str = DEFAULT_MODEL) -> Path:
    """File of the newest version of a bundled model."""
    files = (bundled_repository() / name).glob("*/model.onnx")
    return max(files, key=lambda file: int(file.parent.name))


def metadata_of(file: Path) -> ModelMetadata:
    """Metadata of a model file."""
    properties = onnx.load(file, load_external_data=False).metadata_props
    return parse_metadata({entry.key: entry.value for entry in properties})


def hash_of(metadata: ModelMetadata) -> str:
    """First digits of the hash of the trained network, or of the weights in files of earlier releases."""
    fields = metadata.model_dump()
    return str(fields.get("network_sha256") or fields.get("weights_sha256", "without a hash"))[:12]


def model_of(file: Path) -> str:
    """Name and hash of a model file."""
    metadata = metadata_of(file)
    return f"`{metadata.name}` {hash_of(metadata)}"


def feed(metadata: ModelMetadata, structures: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """Inputs of a forward model for structures (N, y, x), conditions at their defaults."""
    tensors = {STRUCTURE: structures[:, None].astype(np.float32)}
    return tensors | check_conditions(metadata.conditions, {}, len(structures))
