"""Messages of the Open Inference Protocol over gRPC, brought into the form of its JSON, and answers made from results."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2

from metaspec_server.core.shared_memory import SharedMemory
from metaspec_server.http.json_body import MAX_VALUES
from metaspec_server.http.oip_answer import outputs
from metaspec_server.http.oip_codec import InferRequest
from metaspec_server.http.oip_parameters import ProtocolError
from metaspec_server.http.problems import Problem

__all__ = ["check_known", "encode_answer", "parameters_of", "request_header", "size_beside_tensors"]

_RAW = 7  # number of the field raw_input_contents
_MOST_FIELDS = 1000  # of a message
_LARGEST = 8 * MAX_VALUES + 64 * 1024  # bytes beside raw_input_contents: numbers, names, parameters

_CONTENTS = {
    "BOOL": "bool_contents",
    "UINT8": "uint_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
}
"""Field of the numbers of a tensor that does not come as bytes, by the protocol's name of the dtype."""


def size_beside_tensors(message: bytes | bytearray) -> int:
    """Number of bytes of a `ModelInferRequest` beside its raw tensors. Parsed, these may take many times the memory.

    Args:
        message: the bytes, of which only the outermost fields are looked at.

    Raises:
        ProtocolError: they are no message of protobuf.
        Problem: 413 if there are more fields or bytes than a request may need.
    """
    fields = beside = position = 0
    try:
        while position < len(message):
            start = position
            tag, position = _varint(message, position)
            kind = tag & 7
            if kind == 2:
                size, position = _varint(message, position)
                position += size
            elif kind == 0:
                _, position = _varint(message, position)
            else:
                position += {1: 8, 5: 4}[kind]
            fields += 1
            beside += 0 if tag >> 3 == _RAW else position - start
            if fields > _MOST_FIELDS or beside > _LARGEST:
                raise Problem(
                    413,
                    f"the message has more than {_MOST_FIELDS} fields, or {_LARGEST} bytes beside raw_input_contents: send "
                    "the values of tensors there",
                )
    except (IndexError, KeyError):
        raise ProtocolError("the message cannot be read as ModelInferRequest: it is damaged") from None
    return beside


def _varint(message: bytes | bytearray, position: int) -> tuple[int, int]:
    """A number of protobuf's variable length, and the position after it."""
    value = shift = 0
    while True:
        byte = message[position]
        value |= (byte & 127) << shift
        position, shift = position + 1, shift + 7
        if byte < 128:
            return value, position
        if shift > 63:
            raise IndexError


def check_known(message: Message) -> None:
    """Check that a message has no fields that the protocol does not define, in itself or in the messages within.

    Raises:
        ProtocolError: it has one.
    """
    unknown = UnknownFieldSet(message)
    if len(unknown):
        raise ProtocolError(f"unknown field number {unknown[0].field_number} in {message.DESCRIPTOR.name}")
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        values = [value] if isinstance(value, Message) else value.values() if isinstance(value, Mapping) else value
        for one in values:
            check_known(one)


def request_header(message: Any) -> tuple[dict[str, Any], list[bytes]]:
    """An inference request as the JSON of HTTP states it, and the bytes of its inputs that come as bytes, in their order.

    Args:
        message: a `ModelInferRequest`. Numbers that do not come as bytes become arrays.

    Raises:
        ProtocolError: the bytes are not those of the inputs, or numbers are in the field of another dtype.
        Problem: 413 if there are more numbers than may come in another form than bytes.
    """
    raw = list(message.raw_input_contents)
    inputs, left = [], iter(raw)
    for tensor in message.inputs:
        parameters = parameters_of(tensor.parameters)
        entry: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}
        if tensor.HasField("contents") and tensor.contents.ListFields():
            entry["data"] = _numbers(tensor)
        elif "shared_memory_region" not in parameters:
            blob = next(left, None)
            if blob is None:
                raise ProtocolError(f"{tensor.name}: neither raw_input_contents nor contents, nor shared memory")
            size = parameters.setdefault("binary_data_size", len(blob))
            if size != len(blob):
                raise ProtocolError(
                    f"{tensor.name}: its entry of raw_input_contents has {len(blob)} bytes, but binary_data_size is {size!r}"
                )
        inputs.append(entry | {"parameters": parameters})
    if unused := len(list(left)):
        raise ProtocolError(f"raw_input_contents: {len(raw)} entries, {unused} of them for no input")
    header = {
        "id": message.id or None,
        "parameters": {"binary_data_output": True} | parameters_of(message.parameters),
        "inputs": inputs,
        "outputs": [
            {"name": output.name, "parameters": parameters_of(output.parameters)} for output in message.outputs
        ],
    }
    return header, raw


def parameters_of(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters by name; None for one without a value."""
    values = {}
    for name, parameter in parameters.items():
        field = parameter.WhichOneof("parameter_choice")
        values[name] = None if field is None else getattr(parameter, field)
    return values


def encode_answer(
    request: InferRequest,
    results: Mapping[str, NDArray[Any]],
    shared_memory: SharedMemory,
    model: str,
    version: int,
) -> Any:
    """The `ModelInferResponse` to a request.

    Args:
        request: decoded request.
        results: outputs of the model.
        shared_memory: regions that outputs may be written to.
        model: name of the model.
        version: version of the model.

    Raises:
        OutOfRange: a gradient does not fit into the dtype that was asked for.
        InvalidSharedMemory: shared memory that an output should be written to cannot be used any more.
    """
    answer = service_pb2.ModelInferResponse(model_name=model, model_version=str(version), id=request.id or "")
    for output, tensor, array in outputs(request, results, shared_memory):
        answer.outputs.add(name=tensor["name"], datatype=tensor["datatype"], shape=tensor["shape"])
        # Clients count outputs and bytes alike: an output in shared memory has empty ones.
        answer.raw_output_contents.append(b"" if output.place else array.tobytes())
    return answer


def _numbers(tensor: Any) -> NDArray[np.float64]:
    fields = [field.name for field, _ in tensor.contents.ListFields()]
    expected = _CONTENTS.get(tensor.datatype)
    if fields != [expected]:
        wanted = f"contents.{expected} or " if expected else ""
        raise ProtocolError(
            f"{tensor.name}: numbers of {tensor.datatype} must come in {wanted}raw_input_contents, got {', '.join(fields)}"
        )
    values = getattr(tensor.contents, fields[0])
    if len(values) > MAX_VALUES:
        raise Problem(413, f"{tensor.name}: at most {MAX_VALUES} numbers in contents, got {len(values)}: send bytes")
    return np.fromiter(values, np.float64, len(values))
