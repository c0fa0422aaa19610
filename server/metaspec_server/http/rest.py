"""Our own routes: `POST /predict` and `POST /gradient`."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Depends, Query, Request, Response
from numpy.typing import NDArray

from metaspec_contract.conditions import Condition, check_conditions
from metaspec_contract.model import COTANGENT, DEFAULT_MODEL, GRADIENT, SPECTRA, gradient_model, is_gradient_model
from metaspec_server.core.memory import Lease
from metaspec_server.core.priority import LOWEST_PRIORITY
from metaspec_server.core.served_model import ServedModel
from metaspec_server.core.service import Service
from metaspec_server.core.tensors import Rows, as_dtype, count, total_bytes
from metaspec_server.core.threads import off_loop
from metaspec_server.http import rest_codec
from metaspec_server.http.disconnect import cancel_on_disconnect
from metaspec_server.http.json_body import ANSWER_BYTES_PER_NUMBER
from metaspec_server.http.openapi import ANSWERS, GRADIENT_REQUEST, PREDICT_REQUEST
from metaspec_server.http.problems import Problem
from metaspec_server.http.query import Number, knows_query, spelled
from metaspec_server.http.request_body import RequestBody
from metaspec_server.http.rest_body import read_body
from metaspec_server.http.rest_codec import Form, InvalidBody
from metaspec_server.http.rest_conditions import read_query
from metaspec_server.http.selection import Selection

__all__ = ["Choice", "content_type_of", "gradient", "predict", "router"]

_ONCE, _REPEATED = ("model", "version", "dtype", "priority"), ("channels", "wavelengths_nm", "conditions")
_QUERY = Depends(knows_query(*_ONCE, repeated=_REPEATED, others=True))  # others are conditions of the model

_SHAPES = {SPECTRA: "MetaSpec-Shape", GRADIENT: "MetaSpec-Gradient-Shape"}  # headers of the answer

_BYTES_PER_NAME = 64  # of work with a channel or a wavelength that was asked for

router = APIRouter(tags=["MetaSpec"], dependencies=[_QUERY])


@dataclass(frozen=True)
class Choice:
    """Query of a request.

    Attributes:
        model: name of the model.
        version: version of the model; the newest by default.
        channels: channels of the answer; all by default.
        wavelengths_nm: wavelengths of the answer in nm; the model's own by default.
        dtype: dtype of the answer.
        priority: 1 for an interactive request, which goes ahead of others; 2, or 0, for the default.
        arrays: names of conditions whose values are arrays of a `.npy` body, in their order.
        values: text of what else is in the query, by name: values of conditions for all structures.
    """

    model: str = DEFAULT_MODEL
    version: str | None = None
    channels: list[str] | None = None
    wavelengths_nm: list[float] | None = None
    dtype: Literal["float32", "float16"] = "float32"
    priority: int = 0
    arrays: list[str] | None = None
    values: dict[str, str] | None = None


async def _choice(  # FastAPI would call a class, or a function that is not async, in a thread
    request: Request,
    model: Annotated[str, Query(description="name of the model")] = DEFAULT_MODEL,
    version: Annotated[str | None, Query(description="version of the model; the newest by default")] = None,
    channels: Annotated[
        list[str] | None,
        Query(description="channels: detectors, and the spread of models over symmetric images; all by default"),
    ] = None,
    wavelengths_nm: Annotated[
        list[Number] | None, Query(description="wavelengths in nm; the model's own by default")
    ] = None,
    dtype: Annotated[Literal["float32", "float16"], Query(description="dtype of the answer")] = "float32",
    priority: Annotated[
        int,
        spelled(f"[0-{LOWEST_PRIORITY}]", f"a whole number from 0 to {LOWEST_PRIORITY}"),
        Query(
            ge=0,
            le=LOWEST_PRIORITY,
            description="1 for an interactive request, which goes ahead of others; 0 or 2 for others",
        ),
    ] = 0,
    conditions: Annotated[
        list[str] | None,
        Query(description="conditions whose values are further arrays of a `.npy` body, in this order"),
    ] = None,
) -> Choice:
    values = {name: text for name, text in request.query_params.items() if name not in (*_ONCE, *_REPEATED)}
    return Choice(model, version, channels, wavelengths_nm, dtype, priority, conditions, values)


@router.post("/predict", openapi_extra=PREDICT_REQUEST, responses=ANSWERS)
async def predict(request: Request, choice: Annotated[Choice, Depends(_choice)]) -> Response:
    """Spectra of structures: the efficiency of each detector at each wavelength.

    A model over symmetric images of a structure (`diffractionnet_symmetric`) has a channel "spread" after the detectors: the
    deviation (rms) of the predictions for these images, in efficiency. The larger it is, the less reliable the prediction.

    The body is JSON; or an array as a `.npy` file; or, as `application/octet-stream`, bit-packed structures (`numpy.packbits`),
    of 2048 bytes each for 128 x 128 pixels. The answer is JSON; a `.npy` file (`Accept: application/x-npy`) of shape (N,
    channels, wavelengths); or the same as raw little-endian bytes (`Accept: application/octet-stream`).

    A model may take conditions, such as the distance of its detectors; `/v2/models/{model}` lists them with their ranges. Each
    is given in the query for all structures, as `?distance_um=1.25`; as a field of JSON; or as a further array of a `.npy`
    body, which the query names: `?conditions=distance_um`.
    """
    service: Service = request.app.state.service
    media_type = _media_type(request)
    content_type = content_type_of(request)
    with service.registry.lease(choice.model, choice.version) as served, service.memory.lease() as memory:
        if is_gradient_model(served.name):
            raise Problem(422, f"model {choice.model!r} gives gradients: ask for it at /gradient", field="model")
        raw = RequestBody(request, service.settings, memory)
        rows, selection = await _decode(service, served, raw, content_type, choice, with_cotangent=False)
        await _hold(service, memory, served, rows, selection, media_type)
        results = await cancel_on_disconnect(request, service.infer(served, rows, priority=choice.priority))
        spectra = await off_loop(results[SPECTRA].nbytes, selection.apply, results[SPECTRA])
        return await _answer(served, selection, {SPECTRA: spectra}, choice.dtype, media_type)


@router.post("/gradient", openapi_extra=GRADIENT_REQUEST, responses=ANSWERS)
async def gradient(request: Request, choice: Annotated[Choice, Depends(_choice)]) -> Response:
    """Spectra of structures, and the gradient of sum(cotangent * spectra) with respect to the density of every pixel.

    With the derivative of an objective with respect to the spectra as cotangent, that is the objective's gradient (a
    vector-Jacobian product). The spread of a model over symmetric images is a channel like any other. The body is JSON; or two
    `.npy` files one after the other, structures and cotangent; or, as `application/octet-stream`, all bit-packed structures and
    then a float32 cotangent for each. The answer is JSON; two `.npy` files, spectra and gradient of shape (N, y, x); or both
    as raw little-endian bytes.

    Conditions are given as at `/predict`. The answer of a model that takes some also holds the gradient with respect to each:
    `gradient_distance_um` in JSON, and otherwise further arrays (N, size) in the order of the model's metadata.
    """
    service: Service = request.app.state.service
    media_type = _media_type(request)
    content_type = content_type_of(request)
    name = choice.model if is_gradient_model(choice.model) else gradient_model(choice.model)
    with service.registry.lease(name, choice.version) as served, service.memory.lease() as memory:
        raw = RequestBody(request, service.settings, memory)
        rows, selection = await _decode(service, served, raw, content_type, choice, with_cotangent=True)
        await _hold(service, memory, served, rows, selection, media_type)
        results = await cancel_on_disconnect(request, service.infer(served, rows, priority=choice.priority))
        spectra = await off_loop(results[SPECTRA].nbytes, selection.apply, results[SPECTRA])
        arrays = {SPECTRA: spectra, GRADIENT: results[GRADIENT].squeeze(1)}
        for condition in served.about.metadata.conditions:
            arrays[condition.gradient] = results[condition.gradient]
        return await _answer(served, selection, arrays, choice.dtype, media_type)


def content_type_of(request: Request) -> str:
    """The type of a request's body: one of `rest_codec`'s.

    Raises:
        Problem: 415 for another one.
    """
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type not in (rest_codec.JSON, rest_codec.NPY, rest_codec.RAW):
        known = f"{rest_codec.JSON}, {rest_codec.NPY} or {rest_codec.RAW}"
        raise Problem(415, f"Content-Type must be {known}, got {content_type or 'none'!r}")
    return content_type


def _media_type(request: Request) -> str:
    media_type = rest_codec.choose_media_type(request.headers.get("accept"))
    if media_type is None:
        raise Problem(406, f"Accept allows none of {rest_codec.JSON}, {rest_codec.NPY}, {rest_codec.RAW}")
    return media_type


async def _decode(
    service: Service, model: ServedModel, raw: RequestBody, content_type: str, choice: Choice, with_cotangent: bool
) -> tuple[Rows, Selection]:
    """Inputs of the model, and the selection of the spectra, by the query and the body."""
    metadata = model.about.metadata
    conditions = metadata.conditions
    values: dict[str, NDArray[np.float64]] = {}
    arrays: list[Condition] = []
    if choice.values or choice.arrays:
        known = sorted((*_ONCE, *_REPEATED))
        values, arrays = read_query(conditions, choice.values or {}, choice.arrays or [], known)
    selection = Selection(metadata, choice.channels, choice.wavelengths_nm)
    shape = selection.shape if with_cotangent else None
    body = await read_body(raw, content_type, Form(model.structure, shape, service.limit, conditions, arrays))
    if body.channels or body.wavelengths_nm:
        _refuse_twice(
            field for field in ("channels", "wavelengths_nm") if getattr(choice, field) and getattr(body, field)
        )
        channels, wavelengths_nm = choice.channels or body.channels, choice.wavelengths_nm or body.wavelengths_nm
        nbytes = _BYTES_PER_NAME * (len(channels or []) + len(wavelengths_nm or []))
        selection = await off_loop(nbytes, Selection, metadata, channels, wavelengths_nm)
    rows = {model.structure.name: body.structures}
    if body.cotangent is not None:
        pulled = await off_loop(body.cotangent.nbytes, selection.pull_back, body.cotangent)
        rest_codec.check_cotangent_count(len(pulled), len(body.structures))
        rows[COTANGENT] = pulled
    if conditions:
        _refuse_twice(values.keys() & body.conditions)
        nbytes = 4 * count(rows) * sum(condition.size for condition in conditions)
        await raw.lease.grow(nbytes)
        rows |= await off_loop(nbytes, check_conditions, conditions, values | body.conditions, count(rows))
    return rows, selection


def _refuse_twice(fields: Iterable[str]) -> None:
    for field in fields:
        raise InvalidBody(field, "given in the query and in the body: give it once")


async def _hold(
    service: Service, memory: Lease, model: ServedModel, rows: Rows, selection: Selection, media_type: str
) -> None:
    """Hold memory for the decoded rows, instead of the body, and for the answer."""
    memory.shrink(total_bytes(rows))
    computed = sum(spec.size for spec in model.about.outputs)
    answered = computed - math.prod(model.about.metadata.spectra_shape) + math.prod(selection.shape)
    copy = ANSWER_BYTES_PER_NUMBER if media_type == rest_codec.JSON else 4
    nbytes = count(rows) * (4 * computed + (4 + copy) * answered)
    await memory.grow(nbytes, service.settings.request_timeout)


async def _answer(
    model: ServedModel, selection: Selection, results: dict[str, NDArray[Any]], dtype: str, media_type: str
) -> Response:
    nbytes = total_bytes(results)
    arrays = {name: await off_loop(nbytes, as_dtype, array, dtype, name) for name, array in results.items()}
    first = next(iter(arrays.values()))
    headers = {
        "MetaSpec-Model": model.name,
        "MetaSpec-Version": str(model.version),
        "MetaSpec-Dtype": str(first.dtype),
        "MetaSpec-Merged-Greens": str(model.about.metadata.merged_greens).lower(),
    }
    for name, header in _SHAPES.items():
        if name in arrays:
            headers[header] = _shape(arrays[name])
    if others := [f"{name}={_shape(array)}" for name, array in arrays.items() if name not in _SHAPES]:
        headers["MetaSpec-Condition-Shapes"] = "; ".join(others)
    if media_type == rest_codec.NPY:
        content = await off_loop(nbytes, rest_codec.encode_npy, list(arrays.values()))
    elif media_type == rest_codec.RAW:
        content = await off_loop(nbytes, rest_codec.encode_raw, list(arrays.values()))
    else:
        described = {
            "model": model.name,
            "version": str(model.version),
            "channels": selection.channels,
            "wavelengths_nm": selection.wavelengths_nm.tolist(),
            "merged_greens": model.about.metadata.merged_greens,
            "units": model.about.metadata.units.get("spectra", ""),
        }
        content = await off_loop(8 * nbytes, rest_codec.encode_json, described, arrays)
    return Response(content, media_type=media_type, headers=headers)


def _shape(array: NDArray[Any]) -> str:
    return ",".join(map(str, array.shape))
