"""JSON bodies: limited by what they may become before they are parsed, and nested lists of numbers as arrays."""

from __future__ import annotations

from contextlib import suppress
from itertools import chain
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from metaspec_server.core.threads import off_loop
from metaspec_server.http.problems import Problem
from metaspec_server.http.request_body import PIECE, RequestBody

__all__ = ["ANSWER_BYTES_PER_NUMBER", "MAX_VALUES", "read_json", "to_array"]

MAX_VALUES = 1_200_000
"""Largest number of values in a JSON body: 64 structures of 128 x 128 pixels, and their cotangents.

A value takes 8 to 100 bytes as a Python object, and the interpreter does nothing else while it parses them.
"""

ANSWER_BYTES_PER_NUMBER = 14
"""Bytes of a float32 in a JSON answer, with its comma."""

_BYTES_PER_VALUE = 48  # of a parsed float and its place in a list, and of the array made from it
_LONGEST_VALUE = 32  # bytes of a number in JSON, with its comma and space
_OBJECT = 16  # values that an object counts as: an empty one takes 64 bytes
_AXES = 4
_PART = 2**15  # numbers
_NAMES = {str: "text", type(None): "null", dict: "an object", list: "lists of different depths"}


async def read_json(body: RequestBody, text_bytes: int, size: int | None = None) -> Any:
    """Read and parse a JSON body, or JSON before binary data.

    Args:
        body: body of the request.
        text_bytes: largest number of bytes of text in it, beside the numbers.
        size: size of the JSON in bytes; None for the whole body.

    Raises:
        Problem: 413 if it holds more than `MAX_VALUES` values or is longer than that many could be.
        orjson.JSONDecodeError: it is not JSON, nested too deeply, or not complete.
    """
    longest = _LONGEST_VALUE * MAX_VALUES + text_bytes
    data, values = bytearray(), 0
    while size is None or len(data) < size:
        piece = await body.read(PIECE if size is None else min(PIECE, size - len(data)))
        if not piece:
            break
        values += piece.count(b",") + piece.count(b"[") + _OBJECT * piece.count(b"{")  # an upper bound
        if values > MAX_VALUES:
            raise Problem(
                413,
                f"at most {MAX_VALUES} numbers in JSON, this body may hold {values} or more: send binary data (.npy, packed "
                "bits, or tensors after the JSON) or several requests",
            )
        data += piece
        if len(data) > longest:
            raise Problem(413, f"at most {longest} bytes of JSON, this body has more: send binary data")
    await body.lease.grow(_BYTES_PER_VALUE * values)
    return await off_loop(len(data), orjson.loads, data)


def to_array(value: object, booleans: bool = True) -> NDArray[np.float64]:
    """Evenly nested lists of numbers, or a number, as an array.

    Args:
        value: the parsed JSON.
        booleans: whether true and false are taken, as 1 and 0.

    Raises:
        ValueError: the lists are ragged, nested more than four deep, or hold something else. The message states it.
    """
    shape: list[int] = []
    level: list[Any] = [value]
    while level and type(level[0]) is list and set(map(type, level)) == {list}:
        lengths = set(map(len, level))
        if len(lengths) > 1:
            raise ValueError("expected evenly nested lists, got ragged ones")
        shape.append(lengths.pop())
        if len(shape) > _AXES:
            raise ValueError(f"expected lists nested at most {_AXES} deep, got deeper ones")
        level = list(chain.from_iterable(level))
    array = np.empty(len(level))
    for start in range(0, len(level), _PART):  # the interpreter does nothing else while it converts a part
        part = level[start : start + _PART]
        if not booleans and bool in map(type, part):
            raise ValueError("expected evenly nested lists of numbers, got true or false")
        with suppress(TypeError, ValueError):  # whole numbers up to 255, as in binary structures: twice as fast
            array[start : start + _PART] = np.frombuffer(bytes(part), np.uint8)
            continue
        if others := set(map(type, part)) - {int, float, bool}:
            names = sorted(_NAMES.get(kind, kind.__name__) for kind in others)
            raise ValueError(f"expected evenly nested lists of numbers, got {names[0]}")
        array[start : start + _PART] = part
    return array.reshape(shape)
