"""Reading of requests of the Open Inference Protocol over HTTP: the JSON is checked before the tensors after it are read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson
from fastapi import Request

from metaspec_server.core.engine import Description
from metaspec_server.core.memory import Lease
from metaspec_server.core.service import Service
from metaspec_server.core.shared_memory import Place, SharedMemory
from metaspec_server.core.tensors import Rows
from metaspec_server.core.threads import off_loop
from metaspec_server.http.json_body import read_json
from metaspec_server.http.oip_codec import HEADER_LENGTH, InferRequest, parse_request
from metaspec_server.http.oip_parameters import ProtocolError, check_fields
from metaspec_server.http.oip_values import decode_inputs
from metaspec_server.http.request_body import RequestBody

__all__ = ["decode", "read_fields", "read_request", "read_shared", "service_of"]

_TEXT = 64 * 1024  # bytes of JSON beside numbers: names, parameters, white space
_DIGITS = 12  # of a header length


def service_of(request: Request) -> Service:
    """The service behind the application that got a request."""
    service: Service = request.app.state.service
    return service


async def read_fields(request: Request, fields: Sequence[str] | None) -> dict[str, Any]:
    """The JSON object of a request without tensors; empty if there is no body.

    Args:
        request: the request.
        fields: names that the object may have; None for any.

    Raises:
        ProtocolError: something else, or an unknown field.
        Problem: the JSON is larger than it may be, or the body comes too slowly.
    """
    service = service_of(request)
    with service.memory.lease() as memory:
        body = RequestBody(request, service.settings, memory)
        if not await body.peek(1):
            return {}
        try:
            data = await read_json(body, _TEXT)
        except orjson.JSONDecodeError as error:
            raise ProtocolError(f"the request's JSON cannot be read: {error}") from None
    if not isinstance(data, dict):
        raise ProtocolError(f"the request must be a JSON object, got {type(data).__name__}")
    if fields is not None:
        check_fields(data, fields, "the request")
    return data


async def read_request(
    body: RequestBody,
    header_length: str | None,
    model: str,
    about: Description,
    limit: int,
    shared_memory: SharedMemory,
) -> tuple[InferRequest, Rows]:
    """Read and decode an inference request; returns it and the inputs of the model.

    Args:
        body: body of the request.
        header_length: value of the header `HEADER_LENGTH`, if it was sent.
        model: name of the model.
        about: description of the model.
        limit: largest number of structures.
        shared_memory: regions that tensors may be in.

    Raises:
        ProtocolError: a part is missing, unknown, malformed, of the wrong type, shape or length, or not finite.
        InvalidStructure: values of the structure are not in [0, 1].
        InvalidCondition: values of a condition are not in its range.
        TooManyStructures: there are more than `limit`.
        Problem: the JSON is larger than it may be, or the body comes too slowly.
        ServiceError: there is not enough memory for it, or shared memory that it names cannot be used.
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
    request = await off_loop(body.size, parse_request, header, model, about, limit)
    blobs = []
    for tensor in request.inputs:
        if tensor.place is not None:
            blobs.append(await read_shared(tensor.place, shared_memory, body.lease))
        elif tensor.data is None:
            blob = await body.read(tensor.nbytes)
            if len(blob) < tensor.nbytes:
                raise ProtocolError(
                    f"{tensor.spec.name}: binary_data_size is {tensor.nbytes} but only {len(blob)} bytes are left in the body"
                )
            blobs.append(blob)
    if left := await body.left_over():
        raise ProtocolError(f"{left} after the last tensor")
    return request, await decode(request, blobs, about, shared_memory, body.lease)


async def read_shared(place: Place, shared_memory: SharedMemory, lease: Lease) -> bytearray:
    """A copy of the bytes of an input in shared memory.

    Args:
        place: place of the bytes.
        shared_memory: regions by name.
        lease: memory of the request.

    Raises:
        ServiceError: the place cannot be used, or there is not enough memory.
    """
    shared_memory.check(place)
    await lease.grow(place.nbytes)
    return await off_loop(place.nbytes, shared_memory.read, place)


async def decode(
    request: InferRequest,
    blobs: Sequence[bytes | bytearray],
    about: Description,
    shared_memory: SharedMemory,
    lease: Lease,
) -> Rows:
    """All inputs of the model, once the places of the outputs in shared memory have been checked.

    Args:
        request: the request.
        blobs: bytes of the inputs that have no `data`, in their order.
        about: description of the model.
        shared_memory: regions by name.
        lease: memory of the request.

    Raises:
        ProtocolError, InvalidStructure, InvalidCondition, ServiceError: as in `read_request`.
    """
    places = {name: output.place for name, output in request.outputs.items() if output.place is not None}
    for place in places.values():
        shared_memory.check(place)
    given = {tensor.spec.name: tensor.place for tensor in request.inputs if tensor.place is not None}
    shared_memory.check_apart(given, places)
    received = lease.nbytes
    await lease.grow(
        sum(request.rows * spec.size * spec.dtype.itemsize for spec in about.inputs)
    )  # unless they are binary
    numbers = received // 4
    return await off_loop(numbers, decode_inputs, request, blobs, about)  # each is looked at once
