"""The Open Inference Protocol as a client speaks it: arrays to requests, answers to arrays and errors. No I/O here."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

import httpx
import numpy as np
from numpy.typing import ArrayLike, NDArray

from metaspec._errors import (
    DeadlineExceeded,
    InvalidCotangent,
    InvalidStructure,
    MetaSpecError,
    ModelUnavailable,
    NotAllowed,
    ProtocolError,
    RequestTooLarge,
    ServerBusy,
    ServerError,
)

_HEADER_LENGTH = "Inference-Header-Content-Length"
RETRIED = frozenset({429, 502, 503})
"""Statuses that another attempt may mend. Predictions have no side effects, so repeating one is always safe."""

_PACKED = "metaspec_packed_structures"  # the extension of servers that take structures as bits
_CHUNK = 256  # structures that are checked at a time: their copies stay small


@dataclass(frozen=True)
class ModelInfo:
    """What a server says of a model.

    Attributes:
        name: of the model.
        version: newest of the model, when it was asked.
        pixels: rows and columns of a structure.
        wavelengths_nm: of the spectra.
        channels: names of the detectors.
        takes_bits: whether the server takes binary structures as packed bits.
        details: all that our server adds: process, training data, measured errors. Empty on other servers.
    """

    name: str
    version: str
    pixels: tuple[int, int]
    wavelengths_nm: NDArray[np.float64]
    channels: tuple[str, ...]
    takes_bits: bool
    details: dict[str, Any]

    @property
    def spectra_shape(self) -> tuple[int, int]:
        """Channels and wavelengths."""
        return len(self.channels), len(self.wavelengths_nm)


@dataclass(frozen=True)
class Answer:
    """The outputs of one request, by name, and the version of the model that made them."""

    arrays: dict[str, NDArray[np.float32]]
    version: str


def parse_model(model: httpx.Response, server: httpx.Response) -> ModelInfo:
    """Read the answers of the model's and the server's metadata routes.

    A server other than ours does not tell wavelengths and channels; for outputs of shape (4, 301) those of the default
    process are taken then.

    Raises:
        ProtocolError: they are not what the protocol says.
    """
    try:
        body, extensions = model.json(), server.json().get("extensions", [])
        structure = next(tensor for tensor in body["inputs"] if tensor["name"] == "structure")
        spectra = next(tensor for tensor in body["outputs"] if tensor["name"] == "spectra")
        details = body.get("parameters") or {}
        channels, count = spectra["shape"][-2:]
        if "wavelengths_nm" not in details and (channels, count) != (4, 301):
            raise ProtocolError(f"the server does not tell the wavelengths of its {channels} x {count} spectra")
        wavelengths = np.array(details.get("wavelengths_nm", np.linspace(400, 700, 301)), float)
        names = tuple(details.get("channels", ("R", "G1", "G2", "B")))
        if (len(names), len(wavelengths)) != (channels, count):
            raise ProtocolError(f"{len(names)} channels and {len(wavelengths)} wavelengths for spectra {spectra}")
        rows, columns = structure["shape"][-2:]
        packed = _PACKED in extensions
        return ModelInfo(body["name"], body["versions"][-1], (rows, columns), wavelengths, names, packed, details)
    except (ValueError, KeyError, TypeError, StopIteration, IndexError, AttributeError) as error:
        raise ProtocolError(f"the server's description of the model cannot be read: {error!r}") from error


def check_structures(structures: ArrayLike, pixels: tuple[int, int]) -> NDArray[Any]:
    """Structures as (N, 1, y, x), of the dtype that they have.

    Raises:
        InvalidStructure: another shape than (y, x), (N, y, x) or (N, 1, y, x); or values that are not in [0, 1].
    """
    y, x = pixels
    array = _numbers(structures, "structures", "numbers from 0 (void) to 1 (solid)", InvalidStructure)
    if array.shape[-2:] != pixels or array.ndim not in (2, 3, 4) or (array.ndim == 4 and array.shape[1] != 1):
        raise InvalidStructure(f"structures must be ({y}, {x}), (N, {y}, {x}) or (N, 1, {y}, {x}), got {array.shape}")
    array = array.reshape(-1, 1, y, x)
    for start in range(0, len(array), _CHUNK):
        chunk = array[start : start + _CHUNK]
        good = (chunk >= 0) & (chunk <= 1)
        if not good.all():
            n, _, row, column = (int(i) for i in np.argwhere(~good)[0])
            hint = "; divide 8-bit images by 255" if chunk.max() == 255 else ""
            raise InvalidStructure(
                "structures must lie between 0 (void) and 1 (solid), "
                f"got {chunk[n, 0, row, column]:g} at structure {start + n}, row {row}, column {column}{hint}"
            )
    return array


def check_cotangent(cotangent: ArrayLike, count: int, info: ModelInfo) -> NDArray[np.float32]:
    """A cotangent as float32 (N, channels, wavelengths); one of (channels, wavelengths) is that of every structure.

    Raises:
        InvalidCotangent: another shape, or values that are not finite numbers.
    """
    array = _numbers(cotangent, "cotangent", "numbers", InvalidCotangent)
    if array.shape not in (info.spectra_shape, (count, *info.spectra_shape)):
        shape = f"({info.spectra_shape[0]}, {info.spectra_shape[1]})"
        raise InvalidCotangent(f"cotangent must be {shape} or ({count}, {shape[1:]}, got {array.shape}")
    with np.errstate(over="ignore"):  # what is too large for float32 becomes inf, and is refused for that
        array = array.astype(np.float32)
    if not np.isfinite(array).all():
        raise InvalidCotangent(f"cotangent must be finite, got {array[~np.isfinite(array)][0]}")
    return np.broadcast_to(array, (count, *info.spectra_shape))


def _numbers(
    values: ArrayLike, name: str, expected: str, invalid: type[InvalidStructure | InvalidCotangent]
) -> NDArray[Any]:
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise invalid(f"{name} must be an array: {error}") from None
    if array.dtype.kind not in "buif":
        raise invalid(f"{name} must be {expected}, got {array.dtype}")
    return array


def encode_infer(
    structures: NDArray[Any], cotangent: NDArray[np.float32] | None, takes_bits: bool
) -> tuple[bytes, dict[str, str]]:
    """Body and headers of an inference request.

    Args:
        structures: (N, 1, y, x), checked. Binary ones travel as bits where the server takes them.
        cotangent: (N, channels, wavelengths) to ask for the gradient, None to ask for spectra.
        takes_bits: see `ModelInfo`.
    """
    tensors = [("structure", *_as_sent(structures, takes_bits))]
    outputs = ["spectra"]
    if cotangent is not None:
        tensors.append(("cotangent", "FP32", np.ascontiguousarray(cotangent, "<f4")))
        outputs.append("gradient")
    inputs = [
        {"name": name, "datatype": kind, "shape": array.shape, "parameters": {"binary_data_size": array.nbytes}}
        for name, kind, array in tensors
    ]
    wanted = [{"name": name, "parameters": {"binary_data": True}} for name in outputs]
    header = json.dumps({"inputs": inputs, "outputs": wanted}).encode()
    headers = {"Content-Type": "application/octet-stream", _HEADER_LENGTH: str(len(header))}
    return b"".join([header, *(array.tobytes() for *_, array in tensors)]), headers


def _as_sent(structures: NDArray[Any], takes_bits: bool) -> tuple[str, NDArray[Any]]:
    if takes_bits:
        solid = structures != 0
        if structures.dtype == np.bool_ or np.array_equal(solid, structures):
            return "UINT8", np.packbits(solid.reshape(len(solid), -1), axis=1)
    return "FP32", np.ascontiguousarray(structures, "<f4")


def decode_infer(response: httpx.Response, shapes: Mapping[str, tuple[int, ...]]) -> Answer:
    """The outputs of an inference answer.

    Args:
        response: of status 200.
        shapes: of the outputs that were asked for.

    Raises:
        ProtocolError: the answer cannot be read, or has other tensors.
    """
    arrays: dict[str, NDArray[np.float32]] = {}
    try:
        length = int(response.headers[_HEADER_LENGTH])
        header = json.loads(response.content[:length])
        offset = length
        for tensor in header["outputs"]:
            name, kind, size = tensor["name"], tensor["datatype"], tensor["parameters"]["binary_data_size"]
            blob = response.content[offset : offset + size]
            offset += size
            if name not in shapes:
                continue
            expected = list(shapes[name])
            if list(tensor["shape"]) != expected or kind != "FP32" or len(blob) != 4 * math.prod(expected):
                raise ProtocolError(
                    f"expected FP32 {name} of shape {expected}, got {kind} of shape {tensor['shape']} in {len(blob)} bytes"
                )
            arrays[name] = np.frombuffer(blob, "<f4").reshape(expected)
        version = str(header.get("model_version", ""))
    except (KeyError, ValueError, TypeError, IndexError, AttributeError) as error:
        raise ProtocolError(f"the server's answer cannot be read: {error!r}") from error
    if missing := shapes.keys() - arrays.keys():
        raise ProtocolError(f"the server's answer has no {', '.join(sorted(missing))}")
    return Answer(arrays, version)


def error_of(response: httpx.Response) -> MetaSpecError:
    """The error that an answer of status 400 or more stands for."""
    status = response.status_code
    try:
        body = response.json()
        detail = str(body.get("error") or body.get("detail") or body)
    except (ValueError, AttributeError):
        detail = response.text[:200] or response.reason_phrase
    message = f"{detail} (HTTP {status} from {response.request.url})"
    if status in (429, 503):
        return ServerBusy(message, retry_after(response))
    kinds: dict[int, type[MetaSpecError]] = {
        401: NotAllowed,
        403: NotAllowed,
        404: ModelUnavailable,
        408: DeadlineExceeded,
        413: RequestTooLarge,
        504: DeadlineExceeded,
    }
    return kinds.get(status, ServerError)(message)


def retry_after(response: httpx.Response) -> float | None:
    """Seconds that the server asks to wait (RFC 9110, 10.2.3: a number, or a date), if it does."""
    value = response.headers.get("Retry-After", "")
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None
