"""Reading of the bodies of `/predict` and `/gradient`: what their heads state is checked before the data are read."""

from __future__ import annotations

from typing import Any

import orjson
from numpy.typing import NDArray

from metaspec_server.core.errors import TooManyStructures
from metaspec_server.core.threads import off_loop
from metaspec_server.http import rest_codec
from metaspec_server.http.json_body import read_json
from metaspec_server.http.npy import MAGIC, InvalidNpy, NpyHead, read_head
from metaspec_server.http.request_body import RequestBody
from metaspec_server.http.rest_codec import Body, Form, InvalidBody

__all__ = ["read_body"]

_TEXT = 64 * 1024  # bytes of JSON beside numbers and packed structures: names, white space


async def read_body(body: RequestBody, content_type: str, form: Form) -> Body:
    """Read and decode a body of any accepted type.

    Args:
        body: body of the request.
        content_type: its type: `JSON`, `NPY` or `RAW`.
        form: what it may hold.

    Raises:
        InvalidBody: the body cannot be read.
        InvalidStructure: an array in it cannot be a structure.
        InvalidCondition: an array in it has not the shape of its condition, or a field of JSON holds no numbers.
        TooManyStructures: there are more than `limit`.
        Problem: it is larger than such a body can be, or comes too slowly.
        ServiceError: there is not enough memory for it.
    """
    is_json = content_type == rest_codec.JSON
    if content_type == rest_codec.NPY or (not is_json and await body.peek(len(MAGIC)) == MAGIC):
        return await _read_npy(body, form)
    if form.arrays:
        raise InvalidBody(
            "conditions", "names arrays of a .npy body, which this is not: give values in the query or in JSON"
        )
    return await (_read_json if is_json else _read_raw)(body, form)


async def _read_json(body: RequestBody, form: Form) -> Body:
    base64_bytes = 4 * (form.limit * form.structure.packed_bytes + 2) // 3
    try:
        data = await read_json(body, _TEXT + base64_bytes)
    except orjson.JSONDecodeError as error:
        raise InvalidBody("body", f"expected JSON, got something that cannot be read: {error}") from None
    return await off_loop(body.size, rest_codec.decode_json, data, form)


async def _read_npy(body: RequestBody, form: Form) -> Body:
    structure, cotangent = form.structure, None
    conditions: dict[str, NDArray[Any]] = {}
    try:
        head = await read_head(body)
        count = rest_codec.check_structure_shape(head.dtype, head.shape, structure, form.limit)
        structures = await _read_data(body, head)
        if form.cotangent_shape:
            head = await read_head(body)
            rest_codec.check_cotangent_shape(head.dtype, head.shape, form.cotangent_shape)
            rest_codec.check_cotangent_count(head.shape[0], count)
            cotangent = await _read_data(body, head)
        for condition in form.arrays:
            head = await read_head(body)
            condition.check_head(head.dtype, head.shape, count)
            conditions[condition.name] = await _read_data(body, head)
    except InvalidNpy as error:
        raise InvalidBody("body", f"expected {_expected(form)}, got something that cannot be read: {error}") from None
    if left := await body.left_over():
        hint = "; arrays of conditions are named in the query, as in conditions=NAME" if form.conditions else ""
        raise InvalidBody("body", f"{left} after the last array{hint}")
    await body.lease.grow(count * structure.size * structure.dtype.itemsize)  # unless they are binary
    decoded = await off_loop(structures.nbytes, rest_codec.decode_structures, structures, structure)
    return Body(decoded, cotangent, conditions=conditions)


def _expected(form: Form) -> str:
    if form.arrays:
        names = ["structures", *(["cotangent"] if form.cotangent_shape else []), *(one.name for one in form.arrays)]
        return f"{len(names)} .npy files one after the other, {', '.join(names)}"
    return "two .npy files one after the other, structures and cotangent" if form.cotangent_shape else "a .npy file"


async def _read_data(body: RequestBody, head: NpyHead) -> NDArray[Any]:
    return head.array(await body.read(head.nbytes))


async def _read_raw(body: RequestBody, form: Form) -> Body:
    structure, cotangent_shape, limit = form.structure, form.cotangent_shape, form.limit
    row = rest_codec.raw_row_bytes(structure, cotangent_shape)
    if body.declared is not None and body.declared > limit * row:
        raise TooManyStructures(-(-body.declared // row), limit)
    data = await body.read(limit * row + 1)
    if len(data) > limit * row:
        raise TooManyStructures(f"more than {limit}", limit)
    packed, cotangent = rest_codec.decode_raw(data, structure, cotangent_shape)
    return Body(packed, cotangent)
