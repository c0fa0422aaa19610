"""The bodies of `/predict` and `/gradient`: arrays in JSON, as `.npy` or as raw bytes."""

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
from numpy.typing import NDArray

from metaspec_contract.model import TensorSpec

JSON, NPY, RAW = "application/json", "application/x-npy", "application/octet-stream"


class InvalidBody(ValueError):
    """A body that cannot be served: which field, what was expected and what came."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}")
        self.field = field


@dataclass(frozen=True)
class Body:
    """A decoded body.

    Attributes:
        structures: density in [0, 1], (N, 1, y, x) of the model's dtype, or packed bits, uint8 (N, bytes).
        cotangent: what the gradient is asked for, of any shape; None if there is none.
        wavelengths_nm: where the spectra are wanted; None for the model's own grid.
        channels: which detectors, or the spread; None for all.
    """

    structures: NDArray[Any]
    cotangent: NDArray[Any] | None = None
    wavelengths_nm: list[float] | None = None
    channels: list[str] | None = None


def decode_body(
    body: bytes, content_type: str, spec: TensorSpec, cotangent_shape: tuple[int, ...] | None = None
) -> Body:
    """Decode a body of any accepted type.

    Args:
        body: of the request.
        content_type: one of `JSON`, `NPY`, `RAW`.
        spec: the model's structure.
        cotangent_shape: of the cotangent of one structure; None where none is taken.

    Raises:
        InvalidBody: the body cannot be read, or its values cannot be a structure.
    """
    if content_type == JSON:
        return _from_json(body, spec, with_cotangent=cotangent_shape is not None)
    if content_type == NPY or body.startswith(b"\x93NUMPY"):
        arrays = _from_npy(body, 2 if cotangent_shape else 1)
        return Body(check_structures(arrays[0], spec), arrays[1] if cotangent_shape else None)
    packed, cotangent = _from_raw(body, spec, cotangent_shape or (0,))
    return Body(packed, cotangent)


def check_structures(array: NDArray[Any], spec: TensorSpec) -> NDArray[Any]:
    """Bring structures to (N, 1, y, x) of the model's dtype, if they are what a structure may be.

    Raises:
        InvalidBody: the shape is not (y, x), (N, y, x) or (N, 1, y, x); or values are not numbers from 0 to 1.
    """
    y, x = spec.shape[-2:]
    if array.dtype.kind not in "buif":
        raise InvalidBody("structures", f"expected numbers from 0 (void) to 1 (solid), got {array.dtype}")
    if array.shape[-2:] != (y, x) or array.ndim not in (2, 3, 4) or (array.ndim == 4 and array.shape[1] != 1):
        raise InvalidBody(
            "structures", f"expected shape ({y}, {x}), (N, {y}, {x}) or (N, 1, {y}, {x}), got {array.shape}"
        )
    if array.size == 0:
        raise InvalidBody("structures", "expected at least one structure, got none")
    density = array.reshape(-1, 1, y, x).astype(spec.dtype)
    low, high = float(density.min()), float(density.max())
    if not (low >= 0 and high <= 1):  # so written, NaN fails too
        n, _, row, column = (int(i) for i in np.argwhere(~((density >= 0) & (density <= 1)))[0])
        hint = "; divide 8-bit images by 255" if high == 255 and low >= 0 else ""
        value = density[n, 0, row, column]
        reason = (
            f"expected values from 0 (void) to 1 (solid), got {value:g} at structure {n}, row {row}, column {column}"
        )
        raise InvalidBody("structures", reason + hint)
    return density


def encode_json(described: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> bytes:
    """A JSON object; numbers have the shortest decimals that give the same value of their dtype."""
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    return orjson.dumps(described | contiguous, option=orjson.OPT_SERIALIZE_NUMPY)


def encode_npy(arrays: Sequence[NDArray[Any]]) -> bytes:
    """`.npy` files, one after the other: `numpy.load` on the same open file gives them in turn."""
    buffer = io.BytesIO()
    for array in arrays:
        np.save(buffer, array)
    return buffer.getvalue()


def encode_raw(arrays: Sequence[NDArray[Any]]) -> bytes:
    """Little-endian numbers, one array after the other."""
    return b"".join(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes() for array in arrays)


def choose_media_type(accept: str | None) -> str | None:
    """The best of our formats for an Accept header (RFC 9110, 12.5.1); None if there is none. Without preference, JSON."""
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


def _from_json(body: bytes, spec: TensorSpec, with_cotangent: bool) -> Body:
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
        raise InvalidBody("cotangent", "missing: expected what the gradient is asked for, in the shape of the spectra")
    if "structures" in data:
        structures = check_structures(_array(data, "structures"), spec)
    else:
        try:
            packed = base64.b64decode(data["packed"], validate=True)
        except (binascii.Error, TypeError, ValueError) as error:
            raise InvalidBody("packed", f"expected a base64 string, got something else: {error}") from None
        structures, _ = _from_raw(packed, spec, (0,))
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
        # Pickled arrays run code when they are loaded; they are refused here.
        arrays = [np.asarray(np.lib.format.read_array(file, allow_pickle=False)) for _ in range(wanted)]
    except (ValueError, EOFError, OSError, SyntaxError, MemoryError) as error:
        which = "a .npy file" if wanted == 1 else "two .npy files one after the other, structures and cotangent"
        raise InvalidBody("body", f"expected {which}, got something that cannot be read: {error}") from None
    if file.tell() != len(body):
        raise InvalidBody("body", f"{len(body) - file.tell()} bytes are left over after the last array")
    return arrays


def _from_raw(
    body: bytes, spec: TensorSpec, cotangent_shape: tuple[int, ...]
) -> tuple[NDArray[np.uint8], NDArray[Any] | None]:
    """Packed structures and, after them, a float32 cotangent for each."""
    cotangent_size = math.prod(cotangent_shape)
    row = spec.packed_bytes + 4 * cotangent_size
    if not body or len(body) % row:
        cotangents = f", then {cotangent_size} float32 of cotangent each" if cotangent_size else ""
        raise InvalidBody(
            "body",
            f"expected bit-packed structures of {spec.packed_bytes} bytes each{cotangents}, got {len(body)} bytes",
        )
    count = len(body) // row
    packed = np.frombuffer(body, np.uint8, count * spec.packed_bytes).reshape(count, -1)
    if not cotangent_size:
        return packed, None
    return packed, np.frombuffer(body, "<f4", offset=packed.nbytes).reshape(count, *cotangent_shape)
