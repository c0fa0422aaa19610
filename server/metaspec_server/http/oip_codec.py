"""Codec of the Open Inference Protocol v2 over HTTP, with the binary tensor extension: bytes to tensors and back.

See https://github.com/kserve/open-inference-protocol and Triton's `extension_binary_data`. A body is a JSON object; if the
header `Inference-Header-Content-Length` gives the length of the JSON, raw tensors follow it in the order of the inputs.

Two extensions are our own, for callers who send millions of structures: the structure may come as packed bits, UINT8 of shape
[N, 2048], and the parameter `datatype` of an output may ask for FP16.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from metaspec_contract.model import STRUCTURE, TensorSpec
from metaspec_contract.structures import check_structures
from metaspec_server.core.tensors import Rows, compact
from metaspec_server.http.problems import Problem

__all__ = [
    "HEADER_LENGTH",
    "InferRequest",
    "Output",
    "ProtocolError",
    "datatype",
    "decode_request",
    "describe",
    "encode_response",
]

HEADER_LENGTH = "Inference-Header-Content-Length"

DATATYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype(np.uint8),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
}
_NAMES = {dtype: name for name, dtype in DATATYPES.items()}


class ProtocolError(Problem):
    """A request that is not valid in the protocol, or not for the model: 400. The message names the field."""

    def __init__(self, detail: str) -> None:
        super().__init__(400, detail)


@dataclass(frozen=True)
class InferRequest:
    """A decoded request.

    Attributes:
        id: identifier that the client gave, to be sent back.
        rows: inputs of the model; the structure as `core.tensors.compact` makes it, the others in the model's dtype.
        outputs: encodings of the requested outputs, by name.
    """

    id: str | None
    rows: Rows
    outputs: dict[str, Output]


@dataclass(frozen=True)
class Output:
    """Encoding of a requested output.

    Attributes:
        binary: whether it is sent as raw bytes instead of JSON.
        dtype: dtype of its elements; None for the model's own.
    """

    binary: bool
    dtype: np.dtype[Any] | None


def decode_request(
    body: bytes, header_length: str | None, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
) -> InferRequest:
    """Decode and check an inference request for a model.

    Args:
        body: body of the request.
        header_length: value of the header `HEADER_LENGTH`, if it was sent.
        inputs: inputs of the model.
        outputs: outputs of the model.

    Raises:
        ProtocolError: a part is missing, malformed, of the wrong type, shape or length, or a cotangent is not finite.
        InvalidStructure: values of the structure are not in [0, 1].
    """
    header, binary = _split(body, header_length)
    specs = {spec.name: spec for spec in inputs}
    rows: Rows = {}
    offset = 0
    for entry in _objects(header, "inputs"):
        name = entry.get("name")
        if not isinstance(name, str) or name not in specs:
            raise ProtocolError(f"inputs: the model has no input {name!r}, its inputs are {', '.join(specs)}")
        if name in rows:
            raise ProtocolError(f"inputs: {name!r} is given twice")
        size = _parameters(entry, name).get("binary_data_size")
        raw = None
        if size is not None:
            if not isinstance(size, int) or isinstance(size, bool) or size < 0:
                raise ProtocolError(f"{name}: binary_data_size must be a whole number of bytes, got {size!r}")
            raw = binary[offset : offset + size]
            if len(raw) != size:
                raise ProtocolError(
                    f"{name}: binary_data_size is {size} but only {len(raw)} bytes are left in the body"
                )
            offset += size
        rows[name] = _tensor(entry, specs[name], raw)
    if offset != len(binary):
        raise ProtocolError(f"{len(binary) - offset} bytes are left over after the last tensor")
    if missing := sorted(specs.keys() - rows.keys()):
        raise ProtocolError(f"inputs: {', '.join(missing)} is missing")
    counts = {name: len(array) for name, array in rows.items()}
    if len(set(counts.values())) != 1:
        raise ProtocolError(f"inputs differ in their batch size: {counts}")
    identifier = header.get("id")
    if identifier is not None and not isinstance(identifier, str):
        raise ProtocolError(f"id must be a string, got {identifier!r}")
    return InferRequest(identifier, rows, _wanted(header, outputs))


def encode_response(
    request: InferRequest, results: Mapping[str, NDArray[Any]], model: str, version: int
) -> tuple[bytes, dict[str, str]]:
    """Body and headers of the answer to a request.

    Args:
        request: decoded request.
        results: outputs of the model.
        model: name of the model.
        version: version of the model.
    """
    tensors: list[dict[str, Any]] = []
    blobs: list[bytes] = []
    for name, output in request.outputs.items():
        array = results[name].astype(output.dtype or results[name].dtype, copy=False)
        tensor: dict[str, Any] = {"name": name, "datatype": datatype(array.dtype), "shape": list(array.shape)}
        if output.binary:
            blob = np.ascontiguousarray(array, DATATYPES[tensor["datatype"]]).tobytes()
            tensor["parameters"] = {"binary_data_size": len(blob)}
            blobs.append(blob)
        else:
            tensor["data"] = np.ascontiguousarray(array).ravel()
        tensors.append(tensor)
    answer: dict[str, Any] = {"model_name": model, "model_version": str(version), "outputs": tensors}
    if request.id is not None:
        answer["id"] = request.id
    header = orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)
    if not blobs:
        return header, {"Content-Type": "application/json"}
    return b"".join([header, *blobs]), {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(len(header))}


def datatype(dtype: np.dtype[Any]) -> str:
    """The protocol's name of a dtype."""
    return _NAMES[dtype.newbyteorder("<")]


def describe(specs: Sequence[TensorSpec]) -> list[dict[str, Any]]:
    """Tensors as the routes of model metadata list them."""
    return [{"name": s.name, "datatype": datatype(s.dtype), "shape": [-1, *s.shape]} for s in specs]


def _split(body: bytes, header_length: str | None) -> tuple[dict[str, Any], memoryview]:
    length = len(body)
    if header_length is not None:
        if not header_length.isascii() or not header_length.isdigit() or int(header_length) > len(body):
            raise ProtocolError(f"{HEADER_LENGTH} must be at most the body's {len(body)} bytes, got {header_length!r}")
        length = int(header_length)
    try:
        header = orjson.loads(memoryview(body)[:length])
    except orjson.JSONDecodeError as error:
        raise ProtocolError(f"the request's JSON cannot be read: {error}") from None
    if not isinstance(header, dict):
        raise ProtocolError(f"the request must be a JSON object, got {type(header).__name__}")
    return header, memoryview(body)[length:]


def _objects(header: dict[str, Any], field: str) -> list[dict[str, Any]]:
    entries = header.get(field)
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        raise ProtocolError(f"{field} must be a list of objects, at least one")
    return entries


def _parameters(entry: dict[str, Any], name: object) -> dict[str, Any]:
    parameters = entry.get("parameters") or {}
    if not isinstance(parameters, dict):
        raise ProtocolError(f"{name}: parameters must be an object, got {type(parameters).__name__}")
    return parameters


def _tensor(entry: dict[str, Any], spec: TensorSpec, raw: memoryview | None) -> NDArray[Any]:
    is_structure = spec.name == STRUCTURE
    name, kind, shape = spec.name, entry.get("datatype"), entry.get("shape")
    if not isinstance(kind, str) or kind not in DATATYPES:
        raise ProtocolError(f"{name}: datatype must be one of {', '.join(DATATYPES)}, got {kind!r}")
    if not isinstance(shape, list) or not all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in shape):
        raise ProtocolError(f"{name}: shape must be a list of whole numbers, got {shape!r}")
    packed = is_structure and kind == "UINT8" and shape[1:] == [spec.packed_bytes] and shape[0] > 0
    if not packed and (tuple(shape[1:]) != spec.shape or not shape or shape[0] < 1):
        either = f", or UINT8 [N, {spec.packed_bytes}] of packed bits" if is_structure else ""
        raise ProtocolError(
            f"{name}: shape must be [N, {', '.join(map(str, spec.shape))}] with N >= 1{either}, got {shape}"
        )
    dtype, count = DATATYPES[kind], math.prod(shape)
    if raw is not None:
        if len(raw) != count * dtype.itemsize:
            raise ProtocolError(f"{name}: {kind} of shape {shape} is {count * dtype.itemsize} bytes, got {len(raw)}")
        array = np.frombuffer(raw, dtype)
    else:
        array = _from_json(entry.get("data"), name, count)
    array = array.reshape(shape)
    if packed:
        if array.dtype != np.uint8 and not ((array >= 0) & (array <= 255) & (array % 1 == 0)).all():
            raise ProtocolError(f"{name}: packed bits must be whole numbers from 0 to 255")
        return array.astype(np.uint8, copy=False)
    if is_structure:
        return compact(check_structures(array), spec.dtype)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ProtocolError(f"{name}: values must be finite, got {array[~np.isfinite(array)][0]}")
    return array.astype(spec.dtype, copy=False)


def _from_json(data: object, name: str, count: int) -> NDArray[Any]:
    if not isinstance(data, list):
        raise ProtocolError(f"{name}: data must be a list of numbers, or come as bytes with binary_data_size")
    try:
        array = np.asarray(data)
    except ValueError:
        array = np.empty(0, object)
    if array.dtype.kind not in "bif" or array.size != count:
        raise ProtocolError(f"{name}: data must be {count} numbers, flat or nested evenly")
    return array.astype(np.float64, copy=False).ravel()


def _wanted(header: dict[str, Any], specs: Sequence[TensorSpec]) -> dict[str, Output]:
    default = bool(_parameters(header, "request").get("binary_data_output", False))
    names = [spec.name for spec in specs]
    if not header.get("outputs"):
        return dict.fromkeys(names, Output(default, None))
    wanted = {}
    for entry in _objects(header, "outputs"):
        name = entry.get("name")
        if not isinstance(name, str) or name not in names:
            raise ProtocolError(f"outputs: the model has no output {name!r}, its outputs are {', '.join(names)}")
        parameters = _parameters(entry, name)
        kind = parameters.get("datatype")
        if kind is not None and kind not in ("FP16", "FP32"):
            raise ProtocolError(f"{name}: the parameter datatype must be FP16 or FP32, got {kind!r}")
        wanted[name] = Output(bool(parameters.get("binary_data", default)), DATATYPES[kind] if kind else None)
    return wanted
