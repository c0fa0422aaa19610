"""The bodies of `/predict`: structures in JSON, `.npy` or packed bits; spectra in JSON, `.npy` or raw float32."""

from __future__ import annotations

import base64
import binascii
import io
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

JSON, NPY, RAW = "application/json", "application/x-npy", "application/octet-stream"

Array = NDArray[np.float32]


class InvalidBody(ValueError):
    """A body that cannot be served: which field, what was expected and what came."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}")
        self.field = field


@dataclass(frozen=True)
class PredictRequest:
    """A decoded `/predict` body.

    Attributes:
        structures: density, float32 (N, 1, y, x) in [0, 1].
        wavelengths_nm: where the spectra are wanted; None for the model's own grid.
        channels: which detectors; None for all.
    """

    structures: Array
    wavelengths_nm: list[float] | None = None
    channels: list[str] | None = None


def decode_predict(body: bytes, content_type: str, pixels: tuple[int, int]) -> PredictRequest:
    """Decode a `/predict` body of any accepted type.

    Raises:
        InvalidBody: the body cannot be read or its values cannot be a structure.
    """
    if content_type == JSON:
        return _from_json(body, pixels)
    if content_type == NPY or (content_type == RAW and body.startswith(b"\x93NUMPY")):
        return PredictRequest(check_structures(_from_npy(body), pixels))
    return PredictRequest(_from_packed(body, pixels))


def check_structures(array: NDArray[Any], pixels: tuple[int, int]) -> Array:
    """Bring structures to float32 (N, 1, y, x), if they are what a structure may be.

    Raises:
        InvalidBody: the shape is not (y, x), (N, y, x) or (N, 1, y, x); or values are not numbers from 0 to 1.
    """
    y, x = pixels
    if array.dtype.kind not in "buif":
        raise InvalidBody("structures", f"expected numbers from 0 (void) to 1 (solid), got {array.dtype}")
    if array.shape[-2:] != pixels or array.ndim not in (2, 3, 4) or (array.ndim == 4 and array.shape[1] != 1):
        raise InvalidBody(
            "structures", f"expected shape ({y}, {x}), (N, {y}, {x}) or (N, 1, {y}, {x}), got {array.shape}"
        )
    if array.size == 0:
        raise InvalidBody("structures", "expected at least one structure, got none")
    density = array.reshape(-1, 1, y, x).astype(np.float32)
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


def encode_spectra(
    spectra: Array,
    media_type: str,
    model: str,
    version: int,
    wavelengths_nm: NDArray[np.float64],
    channels: list[str],
    unit: str,
) -> bytes:
    """Spectra (N, channels, wavelengths) in the format asked for."""
    if media_type == NPY:
        buffer = io.BytesIO()
        np.save(buffer, spectra)
        return buffer.getvalue()
    if media_type == RAW:
        return spectra.astype("<f4", copy=False).tobytes()
    answer = {
        "model": model,
        "version": str(version),
        "channels": channels,
        "wavelengths_nm": wavelengths_nm.tolist(),
        "units": unit,
        # Shortest decimals that give the same float32: a third of the bytes of their float64 form.
        "spectra": json.loads(
            np.array2string(spectra, separator=",", threshold=spectra.size + 1, max_line_width=10**9)
        ),
    }
    return json.dumps(answer).encode()


def choose_media_type(accept: str | None) -> str | None:
    """The best of our formats for an Accept header; None if there is none. Without preference, JSON."""
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


def _from_json(body: bytes, pixels: tuple[int, int]) -> PredictRequest:
    try:
        data = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise InvalidBody("body", f"expected JSON, got something that cannot be read: {error}") from None
    if not isinstance(data, dict):
        raise InvalidBody("body", f"expected a JSON object, got {type(data).__name__}")
    known = {"structures", "packed", "wavelengths_nm", "channels"}
    if unknown := sorted(data.keys() - known):
        raise InvalidBody(unknown[0], f"unknown field; known are {', '.join(sorted(known))}")
    if ("structures" in data) == ("packed" in data):
        raise InvalidBody("structures", "expected exactly one of structures and packed")
    if "structures" in data:
        try:
            array = np.asarray(data["structures"])
        except ValueError:
            raise InvalidBody("structures", "expected evenly nested lists, got ragged ones") from None
        structures = check_structures(array, pixels)
    else:
        try:
            packed = base64.b64decode(data["packed"], validate=True)
        except (binascii.Error, TypeError, ValueError) as error:
            raise InvalidBody("packed", f"expected a base64 string, got something else: {error}") from None
        structures = _from_packed(packed, pixels)
    return PredictRequest(
        structures, _list_of(data, "wavelengths_nm", (int, float)), _list_of(data, "channels", (str,))
    )


def _list_of(data: dict[str, Any], name: str, kinds: tuple[type, ...]) -> list[Any] | None:
    values = data.get(name)
    if values is None:
        return None
    good = isinstance(values, list) and values and all(isinstance(v, kinds) and not isinstance(v, bool) for v in values)
    if not good:
        kind = "strings" if str in kinds else "numbers"
        raise InvalidBody(name, f"expected a list of {kind}, at least one, got {str(values)[:60]}")
    return list(values)


def _from_npy(body: bytes) -> NDArray[Any]:
    try:
        # Pickled arrays run code when they are loaded; they are refused here.
        return np.asarray(np.lib.format.read_array(io.BytesIO(body), allow_pickle=False))
    except (ValueError, EOFError, OSError, SyntaxError, MemoryError) as error:
        raise InvalidBody("body", f"expected a .npy file, got something that cannot be read: {error}") from None


def _from_packed(body: bytes, pixels: tuple[int, int]) -> Array:
    size = pixels[0] * pixels[1] // 8
    if not body or len(body) % size:
        raise InvalidBody("body", f"expected bit-packed structures of {size} bytes each, got {len(body)} bytes")
    bits = np.unpackbits(np.frombuffer(body, np.uint8))
    return bits.reshape(-1, 1, *pixels).astype(np.float32)
