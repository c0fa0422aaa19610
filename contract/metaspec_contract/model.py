"""A served model: names, metadata, and the check of its tensors and answers against the metadata.

A model file is an ONNX graph from a structure to spectra, or, for a gradient model, from a structure and a cotangent to spectra
and the vector-Jacobian product; either may take conditions as well. Its metadata are JSON in the file's `metadata_props`, under
`METADATA_KEY`. Contradictions are refused, naming both sides: a model that is served with wrong labels is worse than none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from metaspec_contract.conditions import Condition, require_unique, spread_conditions
from metaspec_contract.detectors import CHANNELS, DETECTORS, SPREAD
from metaspec_contract.process import CompleteProcess
from metaspec_contract.provenance import DataSource, require_same_device
from metaspec_contract.validation import first_error

METADATA_KEY = "metaspec"
"""Key of the metadata in an ONNX file's `metadata_props`, and of the parameter in Triton's `config.pbtxt`."""

SCHEMA_VERSION = 2
"""Version of the metadata that this release writes for models without conditions; it also reads version 1."""

CONDITIONS_VERSION = 3
"""Version of the metadata of models with conditions, which earlier releases refuse instead of leaving an input out."""

STRUCTURE, COTANGENT, SPECTRA, GRADIENT = "structure", "cotangent", "spectra", "gradient"
"""Names of a model's tensors."""

PACKED_STRUCTURES = "metaspec_packed_structures"
"""Protocol extension of servers that take binary structures as packed bits, UINT8 [N, 2048]."""

DEFAULT_MODEL = "diffractionnet"
"""Name of the model that is used when none is given."""

_GRADIENT_SUFFIX = "_vjp"

_GREENS_ROUNDING = 1e-6  # efficiency by which merged greens may differ
_WAVELENGTH_ROUNDING = 1e-6  # nm by which a wavelength may differ from the process's


def gradient_model(name: str) -> str:
    """Name of the gradient model of a model."""
    return name + _GRADIENT_SUFFIX


def forward_model(name: str) -> str:
    """Name of the forward model of a gradient model."""
    return name.removesuffix(_GRADIENT_SUFFIX)


def is_gradient_model(name: str) -> bool:
    """Whether a model of this name is a gradient model."""
    return name.endswith(_GRADIENT_SUFFIX)


class ModelMismatch(ValueError):
    """A model's graph or answers contradict its metadata. The message names the field and both sides."""


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
        """Number of elements in one row."""
        return math.prod(self.shape)

    @property
    def pixels(self) -> tuple[int, int]:
        """Rows and columns of a structure: the last two axes of its tensor."""
        return self.shape[-2], self.shape[-1]

    @property
    def packed_bytes(self) -> int:
        """Bytes of one bit-packed row."""
        return -(-self.size // 8)


class InputMeaning(BaseModel):
    """Name of the structure input and meaning of its values: 1 is solid and 0 is void, in every model.

    Attributes:
        name: name of the tensor.
        solid: value of a solid pixel.
        void: value of a void pixel.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

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
    """How a model was trained, for information. Further fields are allowed.

    Attributes:
        network: class of the network.
        parameters: number of weights.
        preset: name of the training preset, "" if there was none or it is unknown.
        data: training data sets; errors are measured on the first.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    network: str
    parameters: int
    preset: str = ""
    data: list[DataSource | dict[str, Any]]


class ModelMetadata(BaseModel):
    """Metadata of a model. Further fields are allowed and passed on.

    Attributes:
        schema_version: version of this schema.
        name: name of the model and of its folder in the repository.
        kind: "forward" for spectra, "vjp" for spectra and gradient.
        process: device that the model predicts, with every field stated.
        wavelengths_nm: wavelengths of the spectra in nm, ascending; those of the process.
        channels: channels of the spectra: the detectors, followed by `SPREAD` in models over symmetric images.
        merged_greens: whether G1 and G2 both hold the mean of the two, because only that was taught.
        units: unit of the spectra, the wavelengths and the spread.
        input: meaning of the structure's values.
        conditions: what the model takes beside the structure; left out where there are none.
        forward_passes: passes through the network for each structure.
        training: how the model was trained.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    schema_version: Literal[1, 2, 3]
    name: str
    kind: Literal["forward", "vjp"]
    process: CompleteProcess
    wavelengths_nm: list[FiniteFloat] = Field(min_length=2)
    channels: list[str] = Field(min_length=1)
    merged_greens: bool = False
    units: dict[str, str]
    input: InputMeaning
    conditions: tuple[Condition, ...] = ()
    forward_passes: int = Field(1, ge=1)
    training: Training | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.kind == "vjp") != is_gradient_model(self.name):
            raise ValueError(
                f"kind is {self.kind!r} but name is {self.name!r}: names of gradient models end in {_GRADIENT_SUFFIX}"
            )
        if tuple(self.channels) not in (CHANNELS, (*CHANNELS, SPREAD)):
            raise ValueError(
                f"channels must be {', '.join(CHANNELS)}, or these and {SPREAD}, got {', '.join(self.channels)}"
            )
        wavelengths, expected = np.array(self.wavelengths_nm), self.process.wavelengths_nm
        if len(falling := np.flatnonzero(np.diff(wavelengths) <= 0)):
            before, after = wavelengths[falling[0] : falling[0] + 2]
            raise ValueError(f"wavelengths_nm must ascend, got {after:g} after {before:g}")
        if wavelengths.shape != expected.shape or np.abs(wavelengths - expected).max() > _WAVELENGTH_ROUNDING:
            apart = f": {_first_apart(wavelengths, expected)}" if wavelengths.shape == expected.shape else ""
            raise ValueError(
                f"wavelengths_nm are {_range(wavelengths)}, but those of the process are {_range(expected)}{apart}"
            )
        self._check_conditions()
        return self

    def _check_conditions(self) -> None:
        """Refuse conditions that contradict each other, the process or the schema's version."""
        if self.conditions and self.schema_version < CONDITIONS_VERSION:
            raise ValueError(
                f"schema_version must be {CONDITIONS_VERSION} in a model with conditions, got {self.schema_version}"
            )
        require_unique(self.conditions)
        for condition in self.conditions:
            fixed = getattr(self.process, condition.name) if condition.name in type(self.process).model_fields else None
            if fixed is not None and condition.default != fixed:
                raise ValueError(
                    f"condition {condition.name} has the default {condition.default}, but the process has {fixed}"
                )

    @model_serializer(mode="wrap")
    def _without_empty_conditions(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """As earlier versions wrote it, for a model without conditions."""
        document: dict[str, Any] = handler(self)
        if not self.conditions:
            document.pop("conditions", None)
        return document

    @property
    def spectra_shape(self) -> tuple[int, int]:
        """Numbers of channels and wavelengths."""
        return len(self.channels), len(self.wavelengths_nm)

    @property
    def tensors(self) -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]]:
        """Inputs and outputs that the graph must have: shape of one row, by name."""
        structure, spectra = (1, *self.process.structure_shape), self.spectra_shape
        conditions = {condition.name: condition.shape for condition in self.conditions}
        if self.kind == "vjp":
            gradients = {condition.gradient: condition.shape for condition in self.conditions}
            inputs = {STRUCTURE: structure, COTANGENT: spectra, **conditions}
            return inputs, {SPECTRA: spectra, GRADIENT: structure, **gradients}
        return {STRUCTURE: structure, **conditions}, {SPECTRA: spectra}


def parse_metadata(properties: Mapping[str, str]) -> ModelMetadata:
    """Read a model's metadata from the `metadata_props` of its file.

    Raises:
        ModelMismatch: the metadata are missing, incomplete or inconsistent; the field is named.
    """
    if METADATA_KEY not in properties:
        raise ModelMismatch(f'no "{METADATA_KEY}" entry in its metadata_props: export it with metaspec-export')
    try:
        return ModelMetadata.model_validate_json(properties[METADATA_KEY])
    except ValidationError as error:
        raise ModelMismatch(f"metadata: {first_error(error)}") from None


def check_tensors(metadata: ModelMetadata, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> None:
    """Check the tensors of a graph against its metadata.

    Raises:
        ModelMismatch: a tensor is missing, unknown, not of floats, or of another shape; it is named, with what the metadata
            require.
    """
    for kind, specs, expected in zip(("input", "output"), (inputs, outputs), metadata.tensors, strict=True):
        found = {spec.name: spec for spec in specs}
        if found.keys() != expected.keys():
            names = ", ".join(found) or "none"
            raise ModelMismatch(
                f"{kind}s must be {', '.join(expected)} in a model of kind {metadata.kind!r}, got {names}"
            )
        for name, shape in expected.items():
            if found[name].shape != shape:
                raise ModelMismatch(f"{kind} {name} has shape {_shape(found[name].shape)}{_why(metadata, name, shape)}")
            if found[name].dtype != np.float32:
                raise ModelMismatch(f"{kind} {name} has dtype {found[name].dtype}, expected float32")


def check_folder(metadata: ModelMetadata, folder: str) -> None:
    """Check the name of a model against that of its folder in the repository.

    Raises:
        ModelMismatch: they differ.
    """
    if metadata.name != folder:
        raise ModelMismatch(f"metadata: name is {metadata.name!r}, but the model's folder is {folder!r}")


def check_same_device(metadata: ModelMetadata, other: ModelMetadata, ours: str, theirs: str) -> None:
    """Check a model against the one that it replaces, or against its forward model: of one device, with the same channels.

    Args:
        metadata: metadata of the model.
        other: metadata of the model that it has to agree with.
        ours: name of the model, for the message.
        theirs: name of the other model, for the message.

    Raises:
        ModelMismatch: processes, channels or merged greens differ, or a gradient model lacks a condition of its forward model;
            both sides are named.
    """
    try:
        require_same_device(metadata, other, ours, theirs)
    except ValueError as error:
        raise ModelMismatch(f"{error}; publish it under another name") from None
    if metadata.channels != other.channels:
        raise ModelMismatch(
            f"{ours} has the channels {', '.join(metadata.channels)}, {theirs} has {', '.join(other.channels)}; "
            "publish it under another name"
        )
    if metadata.kind == "vjp" and other.kind == "forward":
        _check_same_conditions(metadata, other, ours, theirs)
    elif metadata.kind == "forward" and other.kind == "vjp":
        _check_same_conditions(other, metadata, theirs, ours)


def _check_same_conditions(gradient: ModelMetadata, forward: ModelMetadata, ours: str, theirs: str) -> None:
    """A gradient model takes all conditions of its forward model; it may take more, as it is published first."""
    known = {condition.name: condition for condition in gradient.conditions}
    for condition in forward.conditions:
        if (found := known.get(condition.name)) != condition:
            raise ModelMismatch(f"{theirs} takes {condition}, {ours} takes {found or f'no {condition.name}'}")


def check_answers(metadata: ModelMetadata, answers: Mapping[str, NDArray[Any]], rows: int) -> None:
    """Check a model's answers to `probes` against its metadata.

    Args:
        metadata: metadata of the model.
        answers: outputs by name, each with the batch axis.
        rows: number of structures in the probes.

    Raises:
        ModelMismatch: an output is missing, not of floats, of another shape, or not finite.
    """
    for name, shape in metadata.tensors[1].items():
        if name not in answers:
            raise ModelMismatch(f"output {name} is missing from its answer")
        array = answers[name]
        if array.shape != (rows, *shape):
            raise ModelMismatch(
                f"output {name} has shape {array.shape} for {rows} structures, expected {(rows, *shape)}"
            )
        if array.dtype != np.float32:
            raise ModelMismatch(f"output {name} has dtype {array.dtype}, expected float32")
        finite = np.isfinite(array).all(axis=tuple(range(1, array.ndim)))
        if not finite.all():
            row = int(np.flatnonzero(~finite)[0])
            at = "".join(
                f", at {condition} {', '.join(f'{value:g}' for value in values[row])}"
                for condition, values in spread_conditions(metadata.conditions, rows).items()
            )
            raise ModelMismatch(
                f"output {name} is not finite for a structure that is {_PROBES[row % len(_PROBES)]}{at}"
            )
    if metadata.merged_greens:
        first, second = (answers[SPECTRA][:, CHANNELS.index(name)] for name in DETECTORS["G"])
        if rows and (apart := float(np.abs(first - second).max())) > _GREENS_ROUNDING:
            raise ModelMismatch(
                f"metadata: merged_greens is true, but G1 and G2 in output {SPECTRA} differ by up to {apart:.2g}"
            )


_PROBES = ("empty", "full", "random")  # in turn


def probes(metadata: ModelMetadata, rows: int, dtype: np.dtype[Any] | None = None) -> dict[str, NDArray[Any]]:
    """Inputs to try a model with: empty, full and random structures in turn, random cotangents, conditions over their range.

    Both ends of each range are among them if there are two rows or more.

    Args:
        metadata: metadata of the model.
        rows: number of structures.
        dtype: dtype of the inputs; float32 by default.
    """
    generator = np.random.default_rng(0)
    inputs: dict[str, NDArray[Any]] = {}
    conditions = spread_conditions(metadata.conditions, rows)
    for name, shape in metadata.tensors[0].items():
        if name in conditions:
            array = conditions[name]
        elif name == STRUCTURE:
            array = generator.integers(0, 2, (rows, *shape), np.uint8).astype(np.float32)
            array[_PROBES.index("empty") :: len(_PROBES)] = 0
            array[_PROBES.index("full") :: len(_PROBES)] = 1
        else:
            array = generator.standard_normal((rows, *shape), np.float32)
        inputs[name] = array.astype(dtype or np.float32)
    return inputs


def _why(metadata: ModelMetadata, name: str, shape: tuple[int, ...]) -> str:
    if name not in (STRUCTURE, GRADIENT, COTANGENT, SPECTRA):
        return f", expected {_shape(shape)}: the metadata name a condition of {shape[0]} value{'s' * (shape[0] > 1)} in a row"
    if name in (STRUCTURE, GRADIENT):
        pixels = metadata.process.pixels
        return f", expected {_shape(shape)}: a structure of its process has {pixels} x {pixels} pixels"
    return (
        f", expected {_shape(shape)}: the metadata name {len(metadata.channels)} channels and "
        f"{len(metadata.wavelengths_nm)} wavelengths"
    )


def _shape(shape: tuple[int, ...]) -> str:
    return f"[{', '.join(map(str, ('N', *shape)))}]"


def _first_apart(wavelengths: NDArray[np.float64], expected: NDArray[np.float64]) -> str:
    first = int(np.flatnonzero(np.abs(wavelengths - expected) > _WAVELENGTH_ROUNDING)[0])
    return f"number {first + 1} is {wavelengths[first]:.9g} against {expected[first]:.9g}"


def _range(wavelengths: NDArray[np.float64]) -> str:
    return f"{len(wavelengths)} from {wavelengths[0]:g} to {wavelengths[-1]:g} nm"
