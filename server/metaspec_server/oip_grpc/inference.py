"""Inference over gRPC: from the bytes of a message to the bytes of its answer."""

from __future__ import annotations

import math
from typing import Any

from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2

from metaspec_server.core.memory import Lease
from metaspec_server.core.service import Service
from metaspec_server.core.tensors import total_bytes
from metaspec_server.core.threads import off_loop
from metaspec_server.http.oip_answer import answer_bytes
from metaspec_server.http.oip_body import decode, read_shared
from metaspec_server.http.oip_codec import parse_request
from metaspec_server.http.oip_parameters import ProtocolError
from metaspec_server.oip_grpc.messages import check_known, encode_answer, request_header, size_beside_tensors
from metaspec_server.oip_grpc.request_message import decompress

__all__ = ["infer", "parse"]

_GROWTH = 20  # of what is not a raw tensor, when it is parsed
_SOONEST = 1e-6  # seconds: 0 would be no deadline


async def parse(kind: Any, message: bytes | bytearray) -> Any:
    """A message of a kind, from its bytes.

    Raises:
        ProtocolError: the bytes are not one, or it has a field that is unknown.
    """
    try:
        parsed = await off_loop(len(message), kind.FromString, message)
    except DecodeError as error:
        raise ProtocolError(f"the message cannot be read as {kind.DESCRIPTOR.name}: {error}") from None
    await off_loop(len(message), check_known, parsed)
    return parsed


async def infer(service: Service, message: bytes | bytearray, memory: Lease, deadline: float | None) -> Any:
    """The `ModelInferResponse` to a `ModelInferRequest`, which comes as bytes.

    Args:
        service: the service.
        message: the request, as it was sent.
        memory: memory of the request.
        deadline: seconds until the caller gives up; None if it does not.

    Raises:
        ProtocolError: something in the request is missing, unknown, malformed, or not for the model; it is named.
        InvalidStructure: values of the structure are not in [0, 1].
        InvalidCondition: values of a condition are not in its range.
        ServiceError: any error of `core.errors`.
    """
    shared_memory, timeout = service.shared_memory, service.settings.request_timeout
    await memory.grow(len(message))
    message = await decompress(message, service.settings.max_body_bytes, memory)
    await memory.grow(len(message) + _GROWTH * size_beside_tensors(message))  # when it is parsed
    parsed = await parse(service_pb2.ModelInferRequest, message)
    del message
    with service.registry.lease(parsed.model_name, parsed.model_version) as served:
        header, raw = await off_loop(memory.nbytes, request_header, parsed)
        del parsed
        asked = parse_request(header, served.name, served.about, service.limit)
        for name, output in asked.outputs.items():
            if not (output.binary or output.place):
                raise ProtocolError(f"{name}: over gRPC, outputs come as bytes: binary_data must be true, got False")
        blobs: list[bytes | bytearray] = []
        left = iter(raw)
        for tensor in asked.inputs:
            if tensor.place is not None:
                blobs.append(await read_shared(tensor.place, shared_memory, memory))
            elif tensor.data is None:
                blobs.append(next(left))
        rows = await decode(asked, blobs, served.about, shared_memory, memory)
        del header, raw, blobs
        memory.shrink(total_bytes(rows))
        await memory.grow(answer_bytes(served, asked), timeout)
        timeout = min(asked.timeout or math.inf, max(timeout if deadline is None else deadline, _SOONEST))
        results = await service.infer(served, rows, timeout, asked.priority)
        nbytes = total_bytes(results)
        return await off_loop(nbytes, encode_answer, asked, results, shared_memory, served.name, served.version)
