"""Routes of the Open Inference Protocol v2; the stock `tritonclient.http` works unchanged."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Depends, Request, Response
from starlette.responses import JSONResponse

from metaspec_server.core.errors import StillLoading
from metaspec_server.core.tensors import total_bytes
from metaspec_server.core.threads import off_loop
from metaspec_server.http import oip_models
from metaspec_server.http.disconnect import cancel_on_disconnect
from metaspec_server.http.oip_answer import answer_bytes, encode_response
from metaspec_server.http.oip_body import read_request, service_of
from metaspec_server.http.oip_codec import HEADER_LENGTH
from metaspec_server.http.openapi import INFER_ANSWERS, INFER_BODY, oip_errors
from metaspec_server.http.query import knows_query
from metaspec_server.http.request_body import RequestBody

__all__ = ["infer", "router"]

router = APIRouter(prefix="/v2", tags=["Open Inference Protocol"], dependencies=[Depends(knows_query())])


@router.get("")
async def server_metadata() -> dict[str, Any]:
    """Name, version and extensions of the server."""
    return oip_models.server_metadata()


@router.get("/health/live", responses=oip_errors())
async def live() -> dict[str, bool]:
    """200 while the server answers."""
    return {"live": True}


@router.get("/health/ready", responses=oip_errors(503))
async def ready(request: Request) -> Response:
    """200 when every model takes work; 503 otherwise, with the reason, and the models that are loaded and still to load."""
    service = service_of(request)
    reason = service.why_not_ready()
    if not reason:
        return JSONResponse({"ready": True})
    loaded = [model.name for model in service.registry.newest()]
    return JSONResponse({"ready": False, "error": reason, "loaded": loaded, "loading": service.registry.expected}, 503)


@router.get("/models/{model}", responses=oip_errors(404, 503))
@router.get("/models/{model}/versions/{version}", responses=oip_errors(404, 503))
async def model_metadata(request: Request, model: str, version: str | None = None) -> dict[str, Any]:
    """Tensors of a model and, as `parameters`, its metadata: process, wavelengths, channels, training, errors."""
    return oip_models.model_metadata(service_of(request), model, version)


@router.get("/models/{model}/config", responses=oip_errors(404, 503))
@router.get("/models/{model}/versions/{version}/config", responses=oip_errors(404, 503))
async def model_config(request: Request, model: str, version: str | None = None) -> dict[str, Any]:
    """Triton's configuration of a model. Its parameter `metaspec` holds the metadata."""
    return oip_models.model_config(service_of(request), model, version)


@router.get("/models/{model}/stats", responses=oip_errors(404, 503))
@router.get("/models/{model}/versions/{version}/stats", responses=oip_errors(404, 503))
async def model_statistics(request: Request, model: str, version: str | None = None) -> dict[str, Any]:
    """Statistics of the versions of a model since they were loaded: requests, micro-batches, times, cache."""
    return oip_models.model_statistics(service_of(request), model, version)


@router.get("/models/{model}/ready", responses=oip_errors(404, 503))
@router.get("/models/{model}/versions/{version}/ready", responses=oip_errors(404, 503))
async def model_ready(request: Request, model: str, version: str | None = None) -> Response:
    """200 when the model takes work, 503 when it does not (yet); 404 when there is no such model or version."""
    try:
        served = service_of(request).registry.find(model, version)
    except StillLoading as error:
        return JSONResponse({"name": model, "ready": False, "error": str(error)}, 503)
    return JSONResponse({"name": served.name, "ready": served.ready}, 200 if served.ready else 503)


@router.post("/models/{model}/infer", responses=INFER_ANSWERS, openapi_extra=INFER_BODY, response_class=Response)
@router.post(
    "/models/{model}/versions/{version}/infer",
    responses=INFER_ANSWERS,
    openapi_extra=INFER_BODY,
    response_class=Response,
)
async def infer(request: Request, model: str, version: str | None = None) -> Response:
    """Compute a model: named tensors in, named tensors out, as JSON or as raw bytes after the JSON."""
    service = service_of(request)
    with service.registry.lease(model, version) as served, service.memory.lease() as memory:
        body = RequestBody(request, service.settings, memory)
        header_length = request.headers.get(HEADER_LENGTH)
        shared_memory = service.shared_memory
        asked, rows = await read_request(body, header_length, served.name, served.about, service.limit, shared_memory)
        memory.shrink(total_bytes(rows))
        await memory.grow(answer_bytes(served, asked), service.settings.request_timeout)
        results = await cancel_on_disconnect(request, service.infer(served, rows, asked.timeout, asked.priority))
        copied = all(output.binary or output.place for output in asked.outputs.values())  # not written as text
        nbytes = total_bytes(results) // (8 if copied else 1)
        content, headers = await off_loop(
            nbytes, encode_response, asked, results, shared_memory, served.name, served.version
        )
        return Response(content, headers=headers)
