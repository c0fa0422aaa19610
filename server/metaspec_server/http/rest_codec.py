"""Bodies of `/predict` and `/gradient`: arrays in JSON, as `.npy` or as raw bytes."""

from __future__ import annotations

import base64
import binascii
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from metaspec_contract.conditions import Condition, InvalidCondition
from metaspec_contract.model import TensorSpec
from metaspec_contract.structures import InvalidStructure
from metaspec_server.core.errors import TooManyStructures
from metaspec_server.core.tensors import compact
from metaspec_server.http.accept import weights
from metaspec_server.http.json_body import to_array
from metaspec_server.http.problems import Problem

__all__ = [
    "JSON",
    "NPY",
    "RAW",
    "Body",
    "Form",
    "InvalidBody",
    "check_cotangent_count",
    "check_cotangent_shape",
    "check_structure_shape",
    "choose_media_type",
    "decode_json",
    "decode_raw",
    "decode_structures",
    "encode_json",
    "encode_npy",
    "encode_raw",
    "raw_row_bytes",
]

JSON, NPY, RAW = "application/json", "application/x-npy", "application/octet-stream"

_AXES_SHOWN = 8  # of a shape, in a message
_SHOWN = 60  # characters of a value, in a message


class InvalidBody(Problem):
    """A body, or a query, that cannot be served: 422.

    Args:
        field: field that is wrong.
        reason: what was expected, and what came.
    """

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(422, f"{field}: {reason}", field=field)


@dataclass(frozen=True)
class Form:
    """What the body of a request to a model may hold.

    Attributes:
        structure: the model's structure tensor.
        cotangent_shape: shape of the cotangent of one structure; None if the route takes none.
        limit: largest number of structures.
        conditions: conditions of the model, which may be fields of JSON.
        arrays: conditions whose values are arrays of a `.npy` body, in their order.
    """

    structure: TensorSpec
    cotangent_shape: tuple[int, int] | None
    limit: int
    conditions: Sequence[Condition] = ()
    arrays: Sequence[Condition] = ()


@dataclass(frozen=True)
class Body:
    """A decoded body.

    Attributes:
        structures: structures as `core.tensors.compact` makes them.
        cotangent: derivative of the objective with respect to the spectra, of any shape; None if there is none.
        wavelengths_nm: wavelengths of the answer in nm; None for the model's own.
        channels: channels of the answer; None for all.
        conditions: values of conditions, by name, not yet checked.
    """

    structures: NDArray[Any]
    cotangent: NDArray[Any] | None = None
    wavelengths_nm: list[float] | None = None
    channels: list[str] | None = None
    conditions: dict[str, NDArray[Any]] = field(default_factory=dict)


def decode_json(data: Any, form: Form) -> Body:
    """Decode parsed JSON.

    Args:
        data: the JSON.
        form: what it may hold.

    Raises:
        InvalidBody: a field is missing, unknown or of another type.
        InvalidStructure: the structures are none.
        InvalidCondition: a condition is given in another form than numbers.
        TooManyStructures: they are more than `limit`.
    """
    if not isinstance(data, dict):
        raise InvalidBody("body", f"expected a JSON object, got {type(data).__name__}")
    structure, limit, with_cotangent = form.structure, form.limit, form.cotangent_shape is not None
    known = {"structures", "packed", "wavelengths_nm", "channels"} | ({"cotangent"} if with_cotangent else set())
    known.update(condition.name for condition in form.conditions)
    if unknown := sorted(data.keys() - known):
        raise InvalidBody(unknown[0][:_SHOWN], f"unknown field; known are {', '.join(sorted(known))}")
    if ("structures" in data) == ("packed" in data):
        raise InvalidBody("structures", "expected exactly one of structures and packed")
    if with_cotangent and "cotangent" not in data:
        reason = "missing: expected the derivative of the objective with respect to the spectra, in their shape"
        raise InvalidBody("cotangent", reason)
    if "structures" in data:
        array = _array(data, "structures")
        check_structure_shape(array.dtype, array.shape, structure, limit)
        structures = decode_structures(array, structure)
    else:
        structures = _from_base64(data["packed"], structure, limit)
    return Body(
        structures,
        _array(data, "cotangent") if with_cotangent else None,
        _list_of(data, "wavelengths_nm", (int, float)),
        _list_of(data, "channels", (str,)),
        {one.name: _numbers(data[one.name], one) for one in form.conditions if data.get(one.name) is not None},
    )


def decode_structures(array: NDArray[Any], spec: TensorSpec) -> NDArray[Any]:
    """Check structures and return them as `core.tensors.compact` makes them.

    Raises:
        InvalidStructure: values outside [0, 1].
    """
    if array.dtype == np.bool_ and (largest := array.view(np.uint8).max()) > 1:
        raise InvalidStructure(f"structures: the bytes of booleans must be 0 or 1, got {largest}")
    return compact(array, spec)


def decode_raw(
    data: bytearray | bytes, structure: TensorSpec, cotangent_shape: tuple[int, ...] | None
) -> tuple[NDArray[np.uint8], NDArray[Any] | None]:
    """Packed structures and, after them, a float32 cotangent for each.

    Raises:
        InvalidBody: no whole number of structures and cotangents.
    """
    cotangent_size = math.prod(cotangent_shape) if cotangent_shape else 0
    row = raw_row_bytes(structure, cotangent_shape)
    if not data or len(data) % row:
        cotangents = f", then {cotangent_size} float32 of cotangent each" if cotangent_size else ""
        raise InvalidBody(
            "body",
            f"expected bit-packed structures of {structure.packed_bytes} bytes each{cotangents}, got {len(data)} bytes",
        )
    count = len(data) // row
    packed = np.frombuffer(data, np.uint8, count * structure.packed_bytes).reshape(count, -1)
    if not cotangent_shape:
        return packed, None
    return packed, np.frombuffer(data, "<f4", offset=packed.nbytes).reshape(count, *cotangent_shape)


def raw_row_bytes(structure: TensorSpec, cotangent_shape: tuple[int, ...] | None) -> int:
    """Bytes of one packed structure and, if the route takes one, its cotangent."""
    return structure.packed_bytes + (4 * math.prod(cotangent_shape) if cotangent_shape else 0)


def check_structure_shape(dtype: np.dtype[Any], shape: tuple[int, ...], spec: TensorSpec, limit: int) -> int:
    """Check dtype and shape of structures before their values, and return their number.

    Raises:
        InvalidStructure: not numbers, or another shape.
        TooManyStructures: more than `limit`.
        InvalidBody: no structure.
    """
    y, x = spec.pixels
    if dtype.kind not in "buif":
        raise InvalidStructure(f"structures must be numbers from 0 (void) to 1 (solid), got {dtype}")
    if shape[-2:] != spec.pixels or len(shape) not in (2, 3, 4) or (len(shape) == 4 and shape[1] != 1):
        raise InvalidStructure(f"structures must be ({y}, {x}), (N, {y}, {x}) or (N, 1, {y}, {x}), got {_shown(shape)}")
    count = shape[0] if len(shape) > 2 else 1
    if not count:
        raise InvalidBody("structures", "expected at least one structure, got none")
    if count > limit:
        raise TooManyStructures(count, limit)
    return count


def check_cotangent_shape(dtype: np.dtype[Any], shape: tuple[int, ...], expected: tuple[int, int]) -> None:
    """Check dtype and shape of cotangents before their values.

    Raises:
        InvalidBody: not numbers, or another shape than (N, *expected).
    """
    if dtype.kind not in "buif":
        raise InvalidBody("cotangent", f"expected numbers, got {dtype}")
    if len(shape) != 3 or shape[1:] != expected:
        wanted = f"(N, {expected[0]}, {expected[1]})"
        raise InvalidBody("cotangent", f"expected the shape of the spectra, {wanted}, got {_shown(shape)}")


def check_cotangent_count(cotangents: int, structures: int) -> None:
    """Check that there is a cotangent for each structure.

    Raises:
        InvalidBody: there are more or fewer.
    """
    if cotangents != structures:
        raise InvalidBody("cotangent", f"expected one for each of {structures} structures, got {cotangents}")


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
    given = weights(accept)
    ranked = [(given.get(kind, given.get("application/*", given.get("*/*", 0.0))), kind) for kind in (JSON, NPY, RAW)]
    best, kind = max(ranked, key=lambda pair: pair[0])
    return kind if best > 0 else None


def _array(data: dict[str, Any], name: str) -> NDArray[np.float64]:
    try:
        return to_array(data[name])
    except ValueError as error:
        raise InvalidBody(name, str(error)) from None


def _numbers(value: object, condition: Condition) -> NDArray[np.float64]:
    try:
        return to_array(value, booleans=False)
    except ValueError as error:
        raise InvalidCondition(condition.name, f"must be numbers between {condition.range}: {error}") from None


def _from_base64(text: object, structure: TensorSpec, limit: int) -> NDArray[np.uint8]:
    if not isinstance(text, str):
        raise InvalidBody("packed", f"expected a base64 string, got {type(text).__name__}")
    count = 3 * len(text) // 4 // structure.packed_bytes
    if count > limit:
        raise TooManyStructures(count, limit)
    try:
        packed = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidBody("packed", f"expected a base64 string, got something else: {error}") from None
    return decode_raw(packed, structure, None)[0]


def _list_of(data: dict[str, Any], name: str, kinds: tuple[type, ...]) -> list[Any] | None:
    values = data.get(name)
    if values is None:
        return None
    good = isinstance(values, list) and values and all(isinstance(v, kinds) and not isinstance(v, bool) for v in values)
    if not good:
        kind = "strings" if str in kinds else "numbers"
        raise InvalidBody(name, f"expected a list of {kind}, at least one, got {str(values)[:_SHOWN]}")
    return list(values)


def _shown(shape: tuple[int, ...]) -> str:
    return str(shape) if len(shape) <= _AXES_SHOWN else f"{len(shape)} axes"
