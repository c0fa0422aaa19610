"""Values of tensors in requests of the Open Inference Protocol v2: from JSON or bytes to the inputs of the model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metaspec_contract.conditions import check_conditions
from metaspec_contract.model import COTANGENT, STRUCTURE
from metaspec_server.core.engine import Description
from metaspec_server.core.tensors import Rows, compact
from metaspec_server.http.json_body import to_array
from metaspec_server.http.oip_codec import DATATYPES, InferRequest, Input, datatype
from metaspec_server.http.oip_parameters import ProtocolError

__all__ = ["decode_inputs"]

_RANGES = {"BOOL": (1, "true and false, or 1 and 0"), "UINT8": (255, "whole numbers from 0 to 255")}


def decode_inputs(request: InferRequest, blobs: Sequence[bytes | bytearray], about: Description) -> Rows:
    """All inputs of the model: the structure as `core.tensors.compact` makes it, the others in the model's dtype.

    Args:
        request: the request.
        blobs: bytes of the inputs that have no `data`, in their order.
        about: description of the model, whose conditions have their defaults where they are not given.

    Raises:
        ProtocolError: values of another type or number, or not finite in the model's dtype.
        InvalidStructure: values of the structure are not in [0, 1].
        InvalidCondition: values of a condition are not in its range.
    """
    left = iter(blobs)
    rows = {
        tensor.spec.name: _decode(
            tensor, _from_bytes(tensor, next(left)) if tensor.data is None else _from_json(tensor)
        )
        for tensor in request.inputs
    }
    if conditions := about.metadata.conditions:
        given = {condition.name: rows[condition.name] for condition in conditions if condition.name in rows}
        rows |= check_conditions(conditions, given, request.rows)
    return rows


def _decode(tensor: Input, array: NDArray[Any]) -> NDArray[Any]:
    name, spec = tensor.spec.name, tensor.spec
    if tensor.packed:
        return array
    if name == STRUCTURE:
        return compact(array, spec)
    if name != COTANGENT:  # a condition, which is checked as such
        return array
    with np.errstate(over="ignore"):
        decoded = array.astype(spec.dtype, copy=False)
    finite = np.isfinite(decoded)
    if not finite.all():
        raise ProtocolError(f"{name}: values must be finite in {datatype(spec.dtype)}, got {array[~finite][0]:g}")
    return decoded


def _from_bytes(tensor: Input, blob: bytes | bytearray) -> NDArray[Any]:
    array = np.frombuffer(blob, DATATYPES[tensor.datatype]).reshape(tensor.shape)
    if tensor.datatype == "BOOL" and (largest := array.view(np.uint8).max()) > 1:
        raise ProtocolError(f"{tensor.spec.name}: the bytes of BOOL must be 0 or 1, got {largest}")
    return array


def _from_json(tensor: Input) -> NDArray[Any]:
    name, kind, count = tensor.spec.name, tensor.datatype, math.prod(tensor.shape)
    if not isinstance(tensor.data, list | np.ndarray):
        raise ProtocolError(f"{name}: data must be a list of numbers, or come as bytes with binary_data_size")
    try:
        is_number = kind != "BOOL" and name not in (STRUCTURE, COTANGENT)
        array = tensor.data if isinstance(tensor.data, np.ndarray) else to_array(tensor.data, booleans=not is_number)
    except ValueError as error:
        raise ProtocolError(f"{name}: data: {error}") from None
    if array.size != count:
        raise ProtocolError(f"{name}: data must be {count} numbers, flat or nested evenly, got {array.size}")
    array = array.reshape(tensor.shape)
    if kind in _RANGES:
        most, what = _RANGES[kind]
        wrong = ~((array >= 0) & (array <= most) & (array % 1 == 0))
        if wrong.any():
            raise ProtocolError(f"{name}: {kind} must be {what}, got {array[wrong][0]:g}")
        return array.astype(DATATYPES[kind])
    return array
