"""A served model: its names, its metadata, and the check of its tensors and answers against them.

A model file is an ONNX graph from a structure to spectra, or, for a gradient model, from a structure and a cotangent to spectra
and the vector-Jacobian product. Its metadata are JSON in the file's `metadata_props`, under `METADATA_KEY`. What does not
fit is refused, naming both sides: a model that is served with wrong labels is worse than none.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from metaspec_contract.detectors import CHANNELS, SPREAD
from metaspec_contract.process import Process, complete_process
from metaspec_contract.provenance import DataSource
from metaspec_contract.structures import PIXELS

METADATA_KEY = "metaspec"
"""Key of the metadata in an ONNX file's `metadata_props`, and of the parameter in Triton's `config.pbtxt`."""

SCHEMA_VERSION = 2
"""Version of the metadata that this release writes; it reads version 1, too."""

STRUCTURE, COTANGENT, SPECTRA, GRADIENT = "structure", "cotangent", "spectra", "gradient"
"""Names of a model's tensors."""

PACKED_STRUCTURES = "metaspec_packed_structures"
"""Protocol extension of servers that take binary structures as packed bits, UINT8 [N, 2048]."""

DEFAULT_MODEL = "diffractionnet"
"""Model that is asked where no name is given."""

_GRADIENT_SUFFIX = "_vjp"


def gradient_model(name: str) -> str:
    """Name of the gradient model of a model."""
    return name + _GRADIENT_SUFFIX


def is_gradient_model(name: str) -> bool:
    """Whether a model of this name is a gradient model."""
    return name.endswith(_GRADIENT_SUFFIX)


class ModelMismatch(ValueError):
    """A model's file, metadata and answers contradict each other. The message names the field and both sides."""


@dataclass(frozen=True)
class TensorSpec:
    """A tensor of a model, without its batch axis.

    Attributes:
        name: name in the graph.
        dtype: dtype of its elements.
        shape: shape of one row.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Elements of one row."""
        return int(np.prod(self.shape))

    @property
    def packed_bytes(self) -> int:
        """Bytes of one row whose elements are bits."""
        return -(-self.size // 8)


class InputMeaning(BaseModel):
    """Which input is the structure, and what its values mean: 1 is solid and 0 is void, in every model.

    Attributes:
        name: name of the tensor.
        solid: value of a solid pixel.
        void: value of a void pixel.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    solid: float
    void: float

    @model_validator(mode="after")
    def _as_everywhere(self) -> Self:
        if self.name != STRUCTURE:
            raise ValueError(f"name must be {STRUCTURE!r}, got {self.name!r}")
        if (self.solid, self.void) != (1.0, 0.0):
            raise ValueError(f"solid must be 1 and void 0, got solid {self.solid:g} and void {self.void:g}")
        return self


class Training(BaseModel):
    """How a model was trained, for people. More than these fields may be present.

    Attributes:
        network: class of the network.
        parameters: number of its weights.
        preset: preset that was trained, "" if there was none or it is not known.
        data: data sets it was trained on, the one that errors are measured on first.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    network: str
    parameters: int
    preset: str = ""
    data: list[DataSource | dict[str, Any]]


class ModelMetadata(BaseModel):
    """What a model says of itself. More than these fields may be present, and is passed on.

    Attributes:
        schema_version: version of this schema.
        name: name of the model, that of its folder in the repository.
        kind: "forward" for spectra, "vjp" for spectra and gradient.
        process: device, every field of it stated.
        wavelengths_nm: wavelengths of the spectra in nm, ascending; those of the process.
        channels: channels of the spectra: the detectors, and `SPREAD` after them in models over symmetric images.
        merged_greens: whether G1 and G2 both hold the mean of the two, because nothing else was ever taught.
        units: unit of the spectra, the wavelengths and the spread.
        input: meaning of the structure's values.
        forward_passes: passes through the network that one structure takes.
        training: how it was trained.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    schema_version: Literal[1, 2]
    name: str
    kind: Literal["forward", "vjp"]
    process: Annotated[Process, BeforeValidator(lambda v: complete_process(v) if isinstance(v, Mapping) else v)]
    wavelengths_nm: list[float] = Field(min_length=2)
    channels: list[str] = Field(min_length=1)
    merged_greens: bool = False
    units: dict[str, str]
    input: InputMeaning
    forward_passes: int = Field(1, ge=1)
    training: Training | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.kind == "vjp") != is_gradient_model(self.name):
            raise ValueError(f"kind is {self.kind!r} but name is {self.name!r}: names of gradient models end with _vjp")
        if tuple(self.channels) not in (CHANNELS, (*CHANNELS, SPREAD)):
            raise ValueError(
                f"channels must be {', '.join(CHANNELS)}, or these and {SPREAD}, got {', '.join(self.channels)}"
            )
        wavelengths, expected = np.array(self.wavelengths_nm), self.process.wavelengths_nm
        if not (np.isfinite(wavelengths).all() and (np.diff(wavelengths) > 0).all()):
            raise ValueError("wavelengths_nm must ascend")
        if wavelengths.shape != expected.shape or np.abs(wavelengths - expected).max() > 1e-6:
            raise ValueError(
                f"wavelengths_nm are {_range(wavelengths)}, but those of the process are {_range(expected)}"
            )
        return self

    @property
    def spectra_shape(self) -> tuple[int, int]:
        """Channels and wavelengths."""
        return len(self.channels), len(self.wavelengths_nm)

    @property
    def tensors(self) -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]]:
        """Inputs and outputs that the graph must have: shapes of one row, by name."""
        structure, spectra = (1, PIXELS, PIXELS), self.spectra_shape
        if self.kind == "vjp":
            return {STRUCTURE: structure, COTANGENT: spectra}, {SPECTRA: spectra, GRADIENT: structure}
        return {STRUCTURE: structure}, {SPECTRA: spectra}


def parse_metadata(properties: Mapping[str, str]) -> ModelMetadata:
    """A model's metadata from the `metadata_props` of its file.

    Raises:
        ModelMismatch: there are none, they are not complete, or they contradict themselves. The field is named.
    """
    if METADATA_KEY not in properties:
        raise ModelMismatch(f'no "{METADATA_KEY}" entry in its metadata_props: export it with metaspec-export')
    try:
        return ModelMetadata.model_validate_json(properties[METADATA_KEY])
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "fields"
        reason = re.sub("^(Value|Assertion) error, ", "", first["msg"])
        raise ModelMismatch(f"metadata {where}: {reason}") from None


def check_tensors(metadata: ModelMetadata, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> None:
    """Hold the tensors of a graph against its metadata.

    Raises:
        ModelMismatch: a tensor is missing, unknown or of another shape; it is named, with what the metadata ask for.
    """
    for kind, specs, expected in zip(("input", "output"), (inputs, outputs), metadata.tensors, strict=True):
        found = {spec.name: spec.shape for spec in specs}
        if found.keys() != expected.keys():
            raise ModelMismatch(
                f"{kind}s must be {', '.join(expected)} in a model of kind {metadata.kind!r}, got {', '.join(found)}"
            )
        for name, shape in expected.items():
            if found[name] != shape:
                raise ModelMismatch(f"{kind} {name} has shape {_shape(found[name])}{_why(metadata, name, shape)}")


def check_answers(metadata: ModelMetadata, answers: Mapping[str, NDArray[Any]], rows: int) -> None:
    """Hold what a model has computed against its metadata.

    Args:
        metadata: metadata of the model.
        answers: its outputs by name, each with the batch axis.
        rows: structures that were asked for.

    Raises:
        ModelMismatch: an output is missing, of another shape, or not finite.
    """
    for name, shape in metadata.tensors[1].items():
        if name not in answers:
            raise ModelMismatch(f"output {name} is missing from its answer")
        array = answers[name]
        if array.shape != (rows, *shape):
            raise ModelMismatch(
                f"output {name} has shape {array.shape} for {rows} structures, expected {(rows, *shape)}"
            )
        finite = np.isfinite(array).reshape(rows, -1).all(axis=1)
        if not finite.all():
            kind = _PROBES[int(np.flatnonzero(~finite)[0]) % len(_PROBES)]
            raise ModelMismatch(f"output {name} is not finite for a structure that is {kind}")


_PROBES = ("empty", "full", "random")


def probes(metadata: ModelMetadata, rows: int, dtype: np.dtype[Any] | None = None) -> dict[str, NDArray[Any]]:
    """Inputs to try a model with: structures that are empty, full and random by turns, and random cotangents.

    Args:
        metadata: metadata of the model.
        rows: number of structures.
        dtype: dtype of the inputs; float32 by default.
    """
    generator = np.random.default_rng(0)
    inputs: dict[str, NDArray[Any]] = {}
    for name, shape in metadata.tensors[0].items():
        if name == STRUCTURE:
            array = generator.integers(0, 2, (rows, *shape)).astype(np.float32)
            array[0::3], array[1::3] = 0, 1
        else:
            array = generator.standard_normal((rows, *shape), np.float32)
        inputs[name] = array.astype(dtype or np.float32)
    return inputs


def _why(metadata: ModelMetadata, name: str, shape: tuple[int, ...]) -> str:
    if name in (STRUCTURE, GRADIENT):
        return f", expected {_shape(shape)}: a structure has {PIXELS} x {PIXELS} pixels"
    return (
        f", expected {_shape(shape)}: the metadata name {len(metadata.channels)} channels and "
        f"{len(metadata.wavelengths_nm)} wavelengths"
    )


def _shape(shape: tuple[int, ...]) -> str:
    return f"[N, {', '.join(map(str, shape))}]"


def _range(wavelengths: NDArray[np.float64]) -> str:
    return f"{len(wavelengths)} from {wavelengths[0]:g} to {wavelengths[-1]:g} nm"
