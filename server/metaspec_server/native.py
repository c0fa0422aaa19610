"""Our own route: `POST /predict`."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
from fastapi import APIRouter, Request, Response
from numpy.typing import NDArray

from metaspec_server import formats
from metaspec_server.bodies import read_body
from metaspec_server.formats import InvalidBody, PredictRequest
from metaspec_server.problems import Problem
from metaspec_server.service import ServedModel, Service

router = APIRouter(tags=["MetaSpec"])

_STRUCTURES = {
    "description": "(128, 128), (N, 128, 128) or (N, 1, 128, 128) nested lists: 1 = solid, 0 = void, densities between",
    "type": "array",
    "items": {},
}
_BODY: dict[str, Any] = {
    "required": True,
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "additionalProperties": False,
                "properties": {
                    "structures": _STRUCTURES,
                    "packed": {"type": "string", "description": "base64 of bit-packed structures, 2048 bytes each"},
                    "wavelengths_nm": {"type": "array", "items": {"type": "number"}, "minItems": 1},
                    "channels": {"type": "array", "items": {"type": "string"}, "minItems": 1},
                },
            },
            "example": {"packed": "8A8=" + "...", "wavelengths_nm": [450, 550, 650]},
        },
        "application/x-npy": {"schema": {"type": "string", "format": "binary"}},
        "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
    },
}
_PROBLEM: dict[str, Any] = {"content": {"application/problem+json": {}}}
_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"description": "Spectra, in the format that Accept asks for.", "content": {formats.NPY: {}, formats.RAW: {}}},
    400: {"description": "The body cannot be decompressed.", **_PROBLEM},
    406: {"description": "No format that Accept allows.", **_PROBLEM},
    413: {"description": "Too many structures or bytes.", **_PROBLEM},
    415: {"description": "Unknown Content-Type or Content-Encoding.", **_PROBLEM},
    422: {"description": "Not a structure, wavelength or channel. Names the field.", **_PROBLEM},
    503: {"description": "The queue is full. See Retry-After.", **_PROBLEM},
    504: {"description": "Not finished in time.", **_PROBLEM},
}


@router.post("/predict", openapi_extra={"requestBody": _BODY}, responses=_RESPONSES)
async def predict(request: Request, model: str = "diffractionnet") -> Response:
    """Spectra of structures: the efficiency of each detector at each wavelength.

    The body is JSON; or an array as a `.npy` file; or, as `application/octet-stream`, bit-packed structures of 2048 bytes
    each (`numpy.packbits`). The answer is JSON; a `.npy` file (`Accept: application/x-npy`), float32 of shape (N, channels,
    wavelengths); or the same as raw little-endian bytes (`Accept: application/octet-stream`).
    """
    service: Service = request.app.state.service
    served = service.model(model)
    if len(served.engine.inputs) > 1:
        names = " and ".join(spec.name for spec in served.engine.inputs)
        raise Problem(422, f"model {model!r} takes {names}: ask for it at /v2/models/{model}/infer", field="model")
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type not in (formats.JSON, formats.NPY, formats.RAW):
        known = f"{formats.JSON}, {formats.NPY} or {formats.RAW}"
        raise Problem(415, f"Content-Type must be {known}, got {content_type or 'none'!r}")
    media_type = formats.choose_media_type(request.headers.get("accept"))
    if media_type is None:
        raise Problem(406, f"Accept allows none of {formats.JSON}, {formats.NPY}, {formats.RAW}")
    body = await read_body(request, service.settings.max_body_bytes)
    name = served.engine.metadata.input.name
    rows, columns = next(spec.shape[-2:] for spec in served.engine.inputs if spec.name == name)
    try:
        # Large bodies take a while to parse, and the event loop has other callers to serve.
        decoded = await asyncio.to_thread(formats.decode_predict, body, content_type, (rows, columns))
        pick = _selection(served, decoded)
    except InvalidBody as error:
        raise Problem(422, str(error), field=error.field) from None
    results = await service.infer(served, {name: decoded.structures})
    content, shape = await asyncio.to_thread(_answer, served, results["spectra"], pick, media_type)
    headers = {
        "MetaSpec-Model": served.name,
        "MetaSpec-Version": str(served.version),
        "MetaSpec-Shape": ",".join(map(str, shape)),
    }
    return Response(content, media_type=media_type, headers=headers)


_Selection = tuple[list[str], NDArray[np.float64]]


def _selection(model: ServedModel, request: PredictRequest) -> _Selection:
    """Channels and wavelengths of the answer, checked."""
    metadata = model.engine.metadata
    for channel in request.channels or []:
        if channel not in metadata.channels:
            raise InvalidBody("channels", f"expected some of {', '.join(metadata.channels)}, got {channel!r}")
    low, high = metadata.wavelengths_nm[0], metadata.wavelengths_nm[-1]
    for wavelength in request.wavelengths_nm or []:
        if not low <= wavelength <= high:
            raise InvalidBody("wavelengths_nm", f"expected {low:g} to {high:g} nm, got {wavelength:g}")
    return request.channels or metadata.channels, np.array(request.wavelengths_nm or metadata.wavelengths_nm, float)


def _answer(
    model: ServedModel, spectra: NDArray[Any], pick: _Selection, media_type: str
) -> tuple[bytes, tuple[int, ...]]:
    """Select, interpolate linearly between the model's wavelengths, and encode."""
    metadata = model.engine.metadata
    channels, wavelengths = pick
    spectra = spectra[:, [metadata.channels.index(channel) for channel in channels]]
    grid = np.array(metadata.wavelengths_nm)
    if not np.array_equal(grid, wavelengths):
        right = np.clip(np.searchsorted(grid, wavelengths), 1, len(grid) - 1)
        share = ((wavelengths - grid[right - 1]) / (grid[right] - grid[right - 1])).astype(np.float32)
        spectra = spectra[..., right - 1] * (1 - share) + spectra[..., right] * share
    unit = metadata.units.get("spectra", "")
    content = formats.encode_spectra(spectra, media_type, model.name, model.version, wavelengths, channels, unit)
    return content, spectra.shape
