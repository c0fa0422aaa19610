"""Bodies of `/predict` and `/gradient`: arrays in JSON, as `.npy` or as raw bytes."""

from __future__ import annotations

import base64
import binascii
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
from numpy.typing import DTypeLike, NDArray

from metaspec_contract.structures import check_structures, packed_bytes
from metaspec_server.core.tensors import compact
from metaspec_server.http.problems import Problem

__all__ = [
    "JSON",
    "NPY",
    "RAW",
    "Body",
    "InvalidBody",
    "choose_media_type",
    "decode_body",
    "encode_json",
    "encode_npy",
    "encode_raw",
]

JSON, NPY, RAW = "application/json", "application/x-npy", "application/octet-stream"


class InvalidBody(Problem):
    """A body, or a query, that cannot be served: 422.

    Args:
        field: field that is wrong.
        reason: what was expected, and what came.
    """

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(422, f"{field}: {reason}", field=field)


@dataclass(frozen=True)
class Body:
    """A decoded body.

    Attributes:
        structures: structures as `core.tensors.compact` makes them.
        cotangent: derivative of the objective with respect to the spectra, of any shape; None if there is none.
        wavelengths_nm: wavelengths of the answer in nm; None for the model's own.
        channels: channels of the answer; None for all.
    """

    structures: NDArray[Any]
    cotangent: NDArray[Any] | None = None
    wavelengths_nm: list[float] | None = None
    channels: list[str] | None = None


def decode_body(
    body: bytes, content_type: str, dtype: DTypeLike, cotangent_shape: tuple[int, ...] | None = None
) -> Body:
    """Decode a body of any accepted type.

    Args:
        body: the body.
        content_type: its type: `JSON`, `NPY` or `RAW`.
        dtype: dtype of densities.
        cotangent_shape: shape of the cotangent of one structure; None if the route takes none.

    Raises:
        InvalidBody: the body cannot be read.
        InvalidStructure: an array in it cannot be a structure.
    """
    if content_type == JSON:
        return _from_json(body, dtype, with_cotangent=cotangent_shape is not None)
    if content_type == NPY or body.startswith(b"\x93NUMPY"):
        arrays = _from_npy(body, 2 if cotangent_shape else 1)
        return Body(_structures(arrays[0], dtype), arrays[1] if cotangent_shape else None)
    packed, cotangent = _from_raw(body, cotangent_shape or (0,))
    return Body(packed, cotangent)


def encode_json(described: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> bytes:
    """A JSON object; each number has the shortest decimals that give the same value in its dtype.

    Args:
        described: other fields of the object.
        arrays: arrays, by field.
    """
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    return orjson.dumps(described | contiguous, option=orjson.OPT_SERIALIZE_NUMPY)


def encode_npy(arrays: Sequence[NDArray[Any]]) -> bytes:
    """`.npy` files, one after the other: repeated `numpy.load` on one open file reads them in turn."""
    buffer = io.BytesIO()
    for array in arrays:
        np.save(buffer, array)
    return buffer.getvalue()


def encode_raw(arrays: Sequence[NDArray[Any]]) -> bytes:
    """Little-endian numbers, one array after the other."""
    return b"".join(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes() for array in arrays)


def choose_media_type(accept: str | None) -> str | None:
    """The preferred one of our formats for an Accept header (RFC 9110, 12.5.1), JSON by default; None if none is accepted."""
    if not accept:
        return JSON
    weights: dict[str, float] = {}
    for part in accept.split(","):
        name, *parameters = (piece.strip() for piece in part.lower().split(";"))
        quality = next((p[2:] for p in parameters if p.startswith("q=")), "1")
        try:
            weights[name] = float(quality)
        except ValueError:
            weights[name] = 0.0
    ranked = [
        (weights.get(kind, weights.get("application/*", weights.get("*/*", 0.0))), kind) for kind in (JSON, NPY, RAW)
    ]
    best, kind = max(ranked, key=lambda pair: pair[0])
    return kind if best > 0 else None


def _structures(array: Any, dtype: DTypeLike) -> NDArray[Any]:
    checked = check_structures(array)
    if not len(checked):
        raise InvalidBody("structures", "expected at least one structure, got none")
    return compact(checked, dtype)


def _from_json(body: bytes, dtype: DTypeLike, with_cotangent: bool) -> Body:
    try:
        data = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidBody("body", f"expected JSON, got something that cannot be read: {error}") from None
    if not isinstance(data, dict):
        raise InvalidBody("body", f"expected a JSON object, got {type(data).__name__}")
    known = {"structures", "packed", "wavelengths_nm", "channels"} | ({"cotangent"} if with_cotangent else set())
    if unknown := sorted(data.keys() - known):
        raise InvalidBody(unknown[0], f"unknown field; known are {', '.join(sorted(known))}")
    if ("structures" in data) == ("packed" in data):
        raise InvalidBody("structures", "expected exactly one of structures and packed")
    if with_cotangent and "cotangent" not in data:
        reason = "missing: expected the derivative of the objective with respect to the spectra, in their shape"
        raise InvalidBody("cotangent", reason)
    if "structures" in data:
        structures = _structures(data["structures"], dtype)
    else:
        try:
            packed = base64.b64decode(data["packed"], validate=True)
        except (binascii.Error, TypeError, ValueError) as error:
            raise InvalidBody("packed", f"expected a base64 string, got something else: {error}") from None
        structures, _ = _from_raw(packed, (0,))
    return Body(
        structures,
        _array(data, "cotangent") if with_cotangent else None,
        _list_of(data, "wavelengths_nm", (int, float)),
        _list_of(data, "channels", (str,)),
    )


def _array(data: dict[str, Any], name: str) -> NDArray[Any]:
    try:
        return np.asarray(data[name])
    except ValueError:
        raise InvalidBody(name, "expected evenly nested lists, got ragged ones") from None


def _list_of(data: dict[str, Any], name: str, kinds: tuple[type, ...]) -> list[Any] | None:
    values = data.get(name)
    if values is None:
        return None
    good = isinstance(values, list) and values and all(isinstance(v, kinds) and not isinstance(v, bool) for v in values)
    if not good:
        kind = "strings" if str in kinds else "numbers"
        raise InvalidBody(name, f"expected a list of {kind}, at least one, got {str(values)[:60]}")
    return list(values)


def _from_npy(body: bytes, wanted: int) -> list[NDArray[Any]]:
    file = io.BytesIO(body)
    try:
        # Loading a pickled array can run code: it is refused.
        arrays = [np.asarray(np.lib.format.read_array(file, allow_pickle=False)) for _ in range(wanted)]
    except (ValueError, EOFError, OSError, SyntaxError, MemoryError) as error:
        which = "a .npy file" if wanted == 1 else "two .npy files one after the other, structures and cotangent"
        raise InvalidBody("body", f"expected {which}, got something that cannot be read: {error}") from None
    if file.tell() != len(body):
        raise InvalidBody("body", f"{len(body) - file.tell()} bytes are left over after the last array")
    return arrays


def _from_raw(body: bytes, cotangent_shape: tuple[int, ...]) -> tuple[NDArray[np.uint8], NDArray[Any] | None]:
    """Packed structures and, after them, a float32 cotangent for each."""
    structure_bytes, cotangent_size = packed_bytes(), math.prod(cotangent_shape)
    row = structure_bytes + 4 * cotangent_size
    if not body or len(body) % row:
        cotangents = f", then {cotangent_size} float32 of cotangent each" if cotangent_size else ""
        raise InvalidBody(
            "body",
            f"expected bit-packed structures of {structure_bytes} bytes each{cotangents}, got {len(body)} bytes",
        )
    count = len(body) // row
    packed = np.frombuffer(body, np.uint8, count * structure_bytes).reshape(count, -1)
    if not cotangent_size:
        return packed, None
    return packed, np.frombuffer(body, "<f4", offset=packed.nbytes).reshape(count, *cotangent_shape)
