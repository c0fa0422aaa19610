"""Reading of the bodies of `/predict` and `/gradient`: what their heads state is checked before the data are read."""

from __future__ import annotations

from typing import Any

import orjson
from numpy.typing import NDArray

from metaspec_contract.model import TensorSpec
from metaspec_server.core.errors import TooManyStructures
from metaspec_server.core.threads import off_loop
from metaspec_server.http import rest_codec
from metaspec_server.http.json_body import read_json
from metaspec_server.http.npy import MAGIC, InvalidNpy, NpyHead, read_head
from metaspec_server.http.request_body import RequestBody
from metaspec_server.http.rest_codec import Body, InvalidBody

__all__ = ["read_body"]

_TEXT = 64 * 1024  # bytes of JSON beside numbers and packed structures: names, white space


async def read_body(
    body: RequestBody,
    content_type: str,
    structure: TensorSpec,
    cotangent_shape: tuple[int, int] | None,
    limit: int,
) -> Body:
    """Read and decode a body of any accepted type.

    Args:
        body: body of the request.
        content_type: its type: `JSON`, `NPY` or `RAW`.
        structure: the model's structure tensor.
        cotangent_shape: shape of the cotangent of one structure; None if the route takes none.
        limit: largest number of structures.

    Raises:
        InvalidBody: the body cannot be read.
        InvalidStructure: an array in it cannot be a structure.
        TooManyStructures: there are more than `limit`.
        Problem: it is larger than such a body can be, or comes too slowly.
        ServiceError: there is not enough memory for it.
    """
    if content_type == rest_codec.JSON:
        return await _read_json(body, structure, cotangent_shape is not None, limit)
    if content_type == rest_codec.NPY or await body.peek(len(MAGIC)) == MAGIC:
        return await _read_npy(body, structure, cotangent_shape, limit)
    return await _read_raw(body, structure, cotangent_shape, limit)


async def _read_json(body: RequestBody, structure: TensorSpec, with_cotangent: bool, limit: int) -> Body:
    base64_bytes = 4 * (limit * structure.packed_bytes + 2) // 3
    try:
        data = await read_json(body, _TEXT + base64_bytes)
    except orjson.JSONDecodeError as error:
        raise InvalidBody("body", f"expected JSON, got something that cannot be read: {error}") from None
    return await off_loop(body.size, rest_codec.decode_json, data, structure, with_cotangent, limit)


async def _read_npy(
    body: RequestBody, structure: TensorSpec, cotangent_shape: tuple[int, int] | None, limit: int
) -> Body:
    cotangent = None
    try:
        head = await read_head(body)
        count = rest_codec.check_structure_shape(head.dtype, head.shape, structure, limit)
        structures = await _read_data(body, head)
        if cotangent_shape:
            head = await read_head(body)
            rest_codec.check_cotangent_shape(head.dtype, head.shape, cotangent_shape)
            rest_codec.check_cotangent_count(head.shape[0], count)
            cotangent = await _read_data(body, head)
    except InvalidNpy as error:
        which = "two .npy files one after the other, structures and cotangent" if cotangent_shape else "a .npy file"
        raise InvalidBody("body", f"expected {which}, got something that cannot be read: {error}") from None
    if left := await body.left_over():
        raise InvalidBody("body", f"{left} after the last array")
    await body.lease.grow(count * structure.size * structure.dtype.itemsize)  # unless they are binary
    decoded = await off_loop(structures.nbytes, rest_codec.decode_structures, structures, structure)
    return Body(decoded, cotangent)


async def _read_data(body: RequestBody, head: NpyHead) -> NDArray[Any]:
    return head.array(await body.read(head.nbytes))


async def _read_raw(
    body: RequestBody, structure: TensorSpec, cotangent_shape: tuple[int, int] | None, limit: int
) -> Body:
    row = rest_codec.raw_row_bytes(structure, cotangent_shape)
    if body.declared is not None and body.declared > limit * row:
        raise TooManyStructures(-(-body.declared // row), limit)
    data = await body.read(limit * row + 1)
    if len(data) > limit * row:
        raise TooManyStructures(f"more than {limit}", limit)
    packed, cotangent = rest_codec.decode_raw(data, structure, cotangent_shape)
    return Body(packed, cotangent)
