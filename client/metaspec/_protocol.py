"""The Open Inference Protocol as a client speaks it: arrays to requests, answers to arrays and errors. No I/O here."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
from numpy.typing import ArrayLike, NDArray

from metaspec._errors import (
    DeadlineExceeded,
    InvalidStructure,
    MetaSpecError,
    ModelUnavailable,
    ProtocolError,
    RequestTooLarge,
    ServerBusy,
    ServerError,
)

_HEADER_LENGTH = "Inference-Header-Content-Length"
RETRIED = frozenset({429, 502, 503})
"""Statuses that another attempt may mend. Predictions have no side effects, so repeating one is always safe."""


@dataclass(frozen=True)
class ModelInfo:
    """What a server says of a model.

    Attributes:
        name: of the model. version: of the model.
        pixels: rows and columns of a structure.
        wavelengths_nm: of the spectra.
        channels: names of the detectors.
        details: all that our server adds: process, training data, measured errors. Empty on other servers.
    """

    name: str
    version: str
    pixels: tuple[int, int]
    wavelengths_nm: NDArray[np.float64]
    channels: tuple[str, ...]
    details: dict[str, Any]


def parse_model(response: httpx.Response) -> ModelInfo:
    """Read the model metadata route's answer.

    A server other than ours does not tell wavelengths and channels; for outputs of shape (4, 301) those of the default
    process are taken then.
    """
    try:
        body = response.json()
        structure = next(tensor for tensor in body["inputs"] if tensor["name"] == "structure")
        spectra = next(tensor for tensor in body["outputs"] if tensor["name"] == "spectra")
        details = body.get("parameters") or {}
        channels, count = spectra["shape"][-2:]
        if "wavelengths_nm" not in details and (channels, count) != (4, 301):
            raise ProtocolError(f"the server does not tell the wavelengths of its {channels} x {count} spectra")
        wavelengths = np.array(details.get("wavelengths_nm", np.linspace(400, 700, 301)), float)
        names = tuple(details.get("channels", ("R", "G1", "G2", "B")))
        rows, columns = structure["shape"][-2:]
        return ModelInfo(body["name"], body["versions"][-1], (rows, columns), wavelengths, names, details)
    except (ValueError, KeyError, TypeError, StopIteration, IndexError) as error:
        raise ProtocolError(f"the server's description of the model cannot be read: {error!r}") from error


def check_structures(structures: ArrayLike, pixels: tuple[int, int]) -> NDArray[np.float32]:
    """Bring structures to float32 (N, 1, y, x).

    Raises:
        InvalidStructure: another shape than (y, x), (N, y, x) or (N, 1, y, x); or values that are not in [0, 1].
    """
    y, x = pixels
    try:
        array = np.asarray(structures)
    except ValueError as error:
        raise InvalidStructure(f"structures must be an array: {error}") from None
    if array.dtype.kind not in "buif":
        raise InvalidStructure(f"structures must be numbers from 0 (void) to 1 (solid), got {array.dtype}")
    if array.shape[-2:] != pixels or array.ndim not in (2, 3, 4) or (array.ndim == 4 and array.shape[1] != 1):
        raise InvalidStructure(f"structures must be ({y}, {x}), (N, {y}, {x}) or (N, 1, {y}, {x}), got {array.shape}")
    density = array.reshape(-1, 1, y, x).astype(np.float32)
    good = (density >= 0) & (density <= 1)
    if not good.all():
        n, _, row, column = (int(i) for i in np.argwhere(~good)[0])
        hint = "; divide 8-bit images by 255" if density.max() == 255 else ""
        raise InvalidStructure(
            "structures must lie between 0 (void) and 1 (solid), "
            f"got {density[n, 0, row, column]:g} at structure {n}, row {row}, column {column}{hint}"
        )
    return density


def encode_infer(structures: NDArray[np.float32]) -> tuple[bytes, dict[str, str]]:
    """Body and headers of an inference request for structures (N, 1, y, x)."""
    blob = structures.astype("<f4", copy=False).tobytes()
    tensor = {
        "name": "structure",
        "datatype": "FP32",
        "shape": list(structures.shape),
        "parameters": {"binary_data_size": len(blob)},
    }
    output = {"name": "spectra", "parameters": {"binary_data": True}}
    header = json.dumps({"inputs": [tensor], "outputs": [output]}).encode()
    headers = {"Content-Type": "application/octet-stream", _HEADER_LENGTH: str(len(header))}
    return header + blob, headers


def decode_infer(response: httpx.Response, rows: int, model: ModelInfo) -> NDArray[np.float32]:
    """Spectra (rows, channels, wavelengths) of an inference answer."""
    try:
        length = int(response.headers[_HEADER_LENGTH])
        header = json.loads(response.content[:length])
        (tensor,) = header["outputs"]
        shape, kind, size = tensor["shape"], tensor["datatype"], tensor["parameters"]["binary_data_size"]
    except (KeyError, ValueError, TypeError) as error:
        raise ProtocolError(f"the server's answer cannot be read: {error!r}") from error
    wanted = [rows, len(model.channels), len(model.wavelengths_nm)]
    blob = response.content[length : length + size]
    if shape != wanted or kind != "FP32" or len(blob) != 4 * math.prod(wanted):
        raise ProtocolError(
            f"expected FP32 spectra of shape {wanted}, got {kind} of shape {shape} in {len(blob)} bytes"
        )
    return np.frombuffer(blob, "<f4").reshape(shape)


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
    kinds = {404: ModelUnavailable, 413: RequestTooLarge, 408: DeadlineExceeded, 504: DeadlineExceeded}
    return kinds.get(status, ServerError)(message)


def retry_after(response: httpx.Response) -> float | None:
    """Seconds that the server asks to wait, if it does."""
    try:
        return max(0.0, float(response.headers["Retry-After"]))
    except (KeyError, ValueError):
        return None
