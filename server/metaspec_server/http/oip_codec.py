"""Requests of the Open Inference Protocol v2: what their JSON says of tensors, checked against the model.

See https://github.com/kserve/open-inference-protocol and Triton's `extension_binary_data`. A body is a JSON object; if the
header `Inference-Header-Content-Length` gives the length of the JSON, raw tensors follow it in the order of the inputs.
Requests over gRPC are brought into the same form (`oip_grpc.messages`).

Two extensions are our own, for callers who send millions of structures: the structure may come as packed bits, UINT8 of shape
[N, 2048], and the parameter `datatype` of an output may ask for FP16. Conditions are optional inputs [N, size]; one of size 1
may come as [N].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from metaspec_contract.conditions import Condition
from metaspec_contract.model import STRUCTURE, TensorSpec
from metaspec_server.core.engine import Description
from metaspec_server.core.errors import TooManyStructures
from metaspec_server.core.shared_memory import Place
from metaspec_server.http.oip_parameters import (
    INPUT_PARAMETERS,
    OUTPUT_PARAMETERS,
    REQUEST_PARAMETERS,
    ProtocolError,
    check_fields,
    is_whole,
    read_parameters,
    read_place,
    shown,
)

__all__ = [
    "DATATYPES",
    "HEADER_LENGTH",
    "InferRequest",
    "Input",
    "Output",
    "datatype",
    "describe",
    "parse_request",
]

HEADER_LENGTH = "Inference-Header-Content-Length"
"""Header with the length of the JSON in bytes, where bytes of tensors follow it."""

DATATYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype(np.uint8),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
}
"""Dtypes of inputs, by the protocol's names."""

_NAMES = {dtype: name for name, dtype in DATATYPES.items()}


@dataclass(frozen=True)
class Output:
    """Encoding of a requested output.

    Attributes:
        binary: whether it is sent as raw bytes instead of JSON.
        dtype: dtype of its elements; None for the model's own.
        place: place in shared memory that it is written to; None if it is sent.
    """

    binary: bool
    dtype: np.dtype[Any] | None
    place: Place | None = None


@dataclass(frozen=True)
class Input:
    """An input as the JSON of a request describes it.

    Attributes:
        spec: the model's tensor.
        datatype: the protocol's name of the dtype that it comes in.
        shape: shape that it comes in, which the model takes.
        packed: whether it holds structures as packed bits.
        data: its values as JSON or as an array of any shape; None if they come as bytes.
        place: place in shared memory of its bytes; None if they come with the request.
    """

    spec: TensorSpec
    datatype: str
    shape: tuple[int, ...]
    packed: bool
    data: object
    place: Place | None = None

    @property
    def nbytes(self) -> int:
        """Size of the values in bytes, if they come as bytes."""
        return math.prod(self.shape) * DATATYPES[self.datatype].itemsize


@dataclass(frozen=True)
class InferRequest:
    """A request, as its JSON describes it.

    Attributes:
        id: identifier that the client gave, to be sent back.
        inputs: inputs of the model; bytes that come with the request are in this order.
        outputs: encodings of the requested outputs, by name.
        timeout: seconds that the caller waits for the answer; None for the server's limit.
        priority: 1 for an interactive request, which goes ahead of others; 0 for the default.
    """

    id: str | None
    inputs: list[Input]
    outputs: dict[str, Output]
    timeout: float | None
    priority: int = 0

    @property
    def rows(self) -> int:
        """Number of structures."""
        return self.inputs[0].shape[0]


def parse_request(header: object, model: str, about: Description, limit: int) -> InferRequest:
    """Check the JSON of an inference request. Values of tensors are checked by `oip_values.decode_inputs`.

    Args:
        header: the parsed JSON.
        model: name of the model.
        about: description of the model.
        limit: largest number of structures.

    Raises:
        ProtocolError: a field is missing, unknown, malformed, or not for the model; it is named.
        TooManyStructures: there are more than `limit`.
    """
    if not isinstance(header, dict):
        raise ProtocolError(f"the request must be a JSON object, got {type(header).__name__}")
    check_fields(header, ("id", "model_name", "inputs", "outputs", "parameters"), "the request")
    specs = {spec.name: spec for spec in about.inputs}
    conditions = {condition.name: condition for condition in about.metadata.conditions}
    tensors: list[Input] = []
    for entry in _objects(header, "inputs"):
        name = entry.get("name")
        if not isinstance(name, str) or name not in specs:
            raise ProtocolError(f"inputs: the model has no input {shown(name)}, its inputs are {', '.join(specs)}")
        if any(tensor.spec.name == name for tensor in tensors):
            raise ProtocolError(f"inputs: {name!r} is given twice")
        tensors.append(_input(entry, specs[name], conditions.get(name)))
    counts = {tensor.spec.name: tensor.shape[0] for tensor in tensors}
    if missing := sorted(specs.keys() - counts.keys() - conditions.keys()):
        raise ProtocolError(f"inputs: {', '.join(missing)} is missing")
    if len(set(counts.values())) != 1:
        raise ProtocolError(f"inputs differ in their batch size: {counts}")
    if tensors[0].shape[0] > limit:
        raise TooManyStructures(tensors[0].shape[0], limit)
    identifier, name = header.get("id"), header.get("model_name")
    if identifier is not None and not isinstance(identifier, str):
        raise ProtocolError(f"id must be a string, got {shown(identifier)}")
    if name is not None and name != model:  # KServe's client repeats the name
        raise ProtocolError(f"model_name is {shown(name)}, but the path asks for {model!r}")
    parameters = read_parameters(header, "the request", REQUEST_PARAMETERS)
    wanted = _outputs(header, about.outputs, tensors[0].shape[0], binary=parameters.get("binary_data_output", False))
    timeout = parameters.get("timeout", 0) / 1e6 or None
    return InferRequest(identifier, tensors, wanted, timeout, parameters.get("priority", 0))


def datatype(dtype: np.dtype[Any]) -> str:
    """The protocol's name of a dtype."""
    return _NAMES[dtype.newbyteorder("<")]


def describe(specs: Sequence[TensorSpec]) -> list[dict[str, Any]]:
    """Tensors as the routes of model metadata list them."""
    return [{"name": s.name, "datatype": datatype(s.dtype), "shape": [-1, *s.shape]} for s in specs]


def _objects(header: dict[str, Any], field: str) -> list[dict[str, Any]]:
    entries = header.get(field)
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        raise ProtocolError(f"{field} must be a list of objects, at least one")
    return entries


def _input(entry: dict[str, Any], spec: TensorSpec, condition: Condition | None) -> Input:
    name, kind, shape = spec.name, entry.get("datatype"), entry.get("shape")
    check_fields(entry, ("name", "datatype", "shape", "parameters", "data"), name)
    if not isinstance(kind, str) or kind not in DATATYPES:
        raise ProtocolError(f"{name}: datatype must be one of {', '.join(DATATYPES)}, got {shown(kind)}")
    if not isinstance(shape, list) or not all(map(is_whole, shape)):
        raise ProtocolError(f"{name}: shape must be a list of whole numbers, got {shown(shape)}")
    is_structure = name == STRUCTURE
    packed = is_structure and kind == "UINT8" and shape[1:] == [spec.packed_bytes] and shape[0] > 0
    flat = condition is not None and condition.size == len(shape) == 1
    if not packed and ((tuple(shape[1:]) != spec.shape and not flat) or not shape or shape[0] < 1):
        either = f", or UINT8 [N, {spec.packed_bytes}] of packed bits" if is_structure else ""
        if condition is not None:
            either = f"{', or [N],' if condition.size == 1 else ''} for {condition}"
        raise ProtocolError(
            f"{name}: shape must be [N, {', '.join(map(str, spec.shape))}] with N >= 1{either}, got {shown(shape)}"
        )
    parameters, data = read_parameters(entry, name, INPUT_PARAMETERS), entry.get("data")
    size, place = parameters.get("binary_data_size"), read_place(parameters, name)
    ways = {"data": data is not None, "binary_data_size": size is not None, "shared_memory_region": place is not None}
    given = [way for way, is_given in ways.items() if is_given]
    if len(given) != 1:
        how = "as a list data of numbers, as bytes with the parameter binary_data_size, or in a shared_memory_region"
        raise ProtocolError(f"{name}: values must come {how}, got {' and '.join(given) or 'none'}")
    tensor = Input(spec, kind, tuple(shape), packed, data, place)
    size = place.nbytes if place else size
    if size is not None and size != tensor.nbytes:
        raise ProtocolError(f"{name}: {kind} of shape {shape} is {tensor.nbytes} bytes, got {size}")
    return tensor


def _outputs(header: dict[str, Any], specs: Sequence[TensorSpec], rows: int, binary: bool) -> dict[str, Output]:
    names = {spec.name: spec for spec in specs}
    if header.get("outputs") in (None, []):
        return dict.fromkeys(names, Output(binary, None))
    wanted: dict[str, Output] = {}
    for entry in _objects(header, "outputs"):
        name = entry.get("name")
        if not isinstance(name, str) or name not in names:
            raise ProtocolError(f"outputs: the model has no output {shown(name)}, its outputs are {', '.join(names)}")
        if name in wanted:
            raise ProtocolError(f"outputs: {name!r} is given twice")
        check_fields(entry, ("name", "parameters"), name)
        parameters = read_parameters(entry, name, OUTPUT_PARAMETERS)
        kind, place = parameters.get("datatype"), read_place(parameters, name)
        dtype = DATATYPES[kind] if kind else None
        needed = rows * names[name].size * (dtype or names[name].dtype).itemsize
        if place and place.nbytes < needed:
            raise ProtocolError(f"{name}: shared_memory_byte_size must be at least {needed}, got {place.nbytes}")
        wanted[name] = Output(parameters.get("binary_data", binary), dtype, place)
    return wanted
