"""Reading of inference requests of the Open Inference Protocol: the JSON is checked before the tensors after it are read."""

from __future__ import annotations

from collections.abc import Sequence

import orjson

from metaspec_contract.model import TensorSpec
from metaspec_server.core.tensors import Rows
from metaspec_server.core.threads import off_loop
from metaspec_server.http.json_body import read_json
from metaspec_server.http.oip_codec import HEADER_LENGTH, InferRequest, decode_inputs, parse_request
from metaspec_server.http.oip_parameters import ProtocolError
from metaspec_server.http.request_body import RequestBody

__all__ = ["read_request"]

_TEXT = 64 * 1024  # bytes of JSON beside numbers: names, parameters, white space
_DIGITS = 12  # of a header length


async def read_request(
    body: RequestBody,
    header_length: str | None,
    model: str,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    limit: int,
) -> tuple[InferRequest, Rows]:
    """Read and decode an inference request; returns it and the inputs of the model.

    Args:
        body: body of the request.
        header_length: value of the header `HEADER_LENGTH`, if it was sent.
        model: name of the model.
        inputs: inputs of the model.
        outputs: outputs of the model.
        limit: largest number of structures.

    Raises:
        ProtocolError: a part is missing, unknown, malformed, of the wrong type, shape or length, or not finite.
        InvalidStructure: values of the structure are not in [0, 1].
        TooManyStructures: there are more than `limit`.
        Problem: the JSON is larger than it may be, or the body comes too slowly.
        ServiceError: there is not enough memory for it.
    """
    length = None
    if header_length is not None:
        if not (header_length.isascii() and header_length.isdigit() and len(header_length) <= _DIGITS):
            raise ProtocolError(f"{HEADER_LENGTH} must be a number of bytes, got {header_length[:60]!r}")
        length = int(header_length)
        if body.declared is not None and length > body.declared:
            raise ProtocolError(f"{HEADER_LENGTH} must be at most the body's {body.declared} bytes, got {length}")
    try:
        header = await read_json(body, _TEXT, length)
    except orjson.JSONDecodeError as error:
        raise ProtocolError(f"the request's JSON cannot be read: {error}") from None
    request = await off_loop(body.size, parse_request, header, model, inputs, outputs, limit)
    blobs = []
    for tensor in request.inputs:
        if tensor.data is None:
            blob = await body.read(tensor.nbytes)
            if len(blob) < tensor.nbytes:
                raise ProtocolError(
                    f"{tensor.spec.name}: binary_data_size is {tensor.nbytes} but only {len(blob)} bytes are left in the body"
                )
            blobs.append(blob)
    if left := await body.left_over():
        raise ProtocolError(f"{left} after the last tensor")
    needed = sum(request.rows * spec.size * spec.dtype.itemsize for spec in inputs)
    await body.lease.grow(needed)  # unless the structures are binary
    return request, await off_loop(body.size, decode_inputs, request, blobs)
