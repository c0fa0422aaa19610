"""Routes of the Open Inference Protocol v2 that change the server: models, shared memory, logging and tracing."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Depends, Request, Response

from metaspec_server.http import oip_control, oip_models
from metaspec_server.http.oip_body import read_fields, service_of
from metaspec_server.http.oip_parameters import ProtocolError, shown
from metaspec_server.http.openapi import oip_errors
from metaspec_server.http.query import knows_query

__all__ = ["router"]

router = APIRouter(prefix="/v2", tags=["Open Inference Protocol"], dependencies=[Depends(knows_query())])

_CHANGES = oip_errors(403, 404, 408, 413, 415)


@router.get("/models/stats", responses=oip_errors())
async def statistics(request: Request) -> dict[str, Any]:
    """Statistics of all models since they were loaded."""
    return oip_models.model_statistics(service_of(request))


@router.post("/repository/index", responses=oip_errors(408, 413, 415))
async def repository_index(request: Request) -> list[dict[str, str]]:
    """Models and versions: the served ones, those that are still to load, and those that cannot be served, with the reason.

    The body is empty, or a JSON object whose `ready` asks for the served ones alone.
    """
    only_ready = (await read_fields(request, ("ready",))).get("ready", False)
    if not isinstance(only_ready, bool):
        raise ProtocolError(f"ready must be true or false, got {shown(only_ready)}")
    return oip_models.repository_index(service_of(request), only_ready)


@router.post("/repository/models/{model}/load", responses=_CHANGES, response_class=Response)
async def load_model(request: Request, model: str) -> Response:
    """Load the newest versions of a model from the repository, also after it was unloaded. No request fails meanwhile."""
    await oip_control.load_model(service_of(request), model, await read_fields(request, ("parameters",)))
    return Response()


@router.post("/repository/models/{model}/unload", responses=_CHANGES, response_class=Response)
async def unload_model(request: Request, model: str) -> Response:
    """Stop serving a model, once its accepted requests are finished, until it is loaded again."""
    await oip_control.unload_model(service_of(request), model, await read_fields(request, ("parameters",)))
    return Response()


@router.get("/systemsharedmemory/status", responses=oip_errors())
async def regions(request: Request) -> list[dict[str, Any]]:
    """The registered regions of system shared memory."""
    return oip_control.regions(service_of(request))


@router.get("/systemsharedmemory/region/{name}/status", responses=oip_errors(404))
async def region(request: Request, name: str) -> list[dict[str, Any]]:
    """A registered region of system shared memory."""
    return oip_control.regions(service_of(request), name)


@router.post("/systemsharedmemory/region/{name}/register", responses=_CHANGES, response_class=Response)
async def register_region(request: Request, name: str) -> Response:
    """Register a region of system shared memory: `key`, `offset` and `byte_size`."""
    oip_control.register_region(service_of(request), name, await read_fields(request, ("key", "offset", "byte_size")))
    return Response()


@router.post("/systemsharedmemory/region/{name}/unregister", responses=_CHANGES, response_class=Response)
async def unregister_region(request: Request, name: str) -> Response:
    """Forget a region of system shared memory."""
    return await _unregister(request, name)


@router.post("/systemsharedmemory/unregister", responses=_CHANGES, response_class=Response)
async def unregister_regions(request: Request) -> Response:
    """Forget all regions of system shared memory."""
    return await _unregister(request, "")


@router.get("/cudasharedmemory/status", responses=oip_errors())
async def cuda_regions() -> list[dict[str, Any]]:
    """The registered regions of CUDA shared memory: none, it is not supported."""
    return []


@router.get("/cudasharedmemory/region/{name}/status", responses=oip_errors())
@router.post("/cudasharedmemory/region/{name}/register", responses=oip_errors())
@router.post("/cudasharedmemory/region/{name}/unregister", responses=oip_errors())
async def refuse_cuda_region(name: str) -> None:
    """Refused: CUDA shared memory is not supported."""
    oip_control.refuse_cuda()


@router.post("/cudasharedmemory/unregister", responses=oip_errors(408, 413, 415), response_class=Response)
async def unregister_cuda_regions(request: Request) -> Response:
    """Nothing to do: no region of CUDA shared memory is registered."""
    await read_fields(request, ())
    return Response()


@router.get("/logging", responses=oip_errors())
async def log_settings() -> dict[str, Any]:
    """What is logged."""
    return oip_control.log_settings()


@router.post("/logging", responses=_CHANGES)
async def change_log_settings(request: Request) -> dict[str, Any]:
    """Change the level of the log until the server ends."""
    return oip_control.change_log_settings(service_of(request), await read_fields(request, None))


@router.get("/trace/setting", responses=oip_errors())
async def trace_settings() -> dict[str, Any]:
    """What is traced."""
    return oip_control.trace_settings()


@router.post("/trace/setting", responses=_CHANGES)
async def change_trace_settings(request: Request) -> dict[str, Any]:
    """Refused unless the settings are those of the server: they cannot be changed while it runs."""
    return oip_control.change_trace_settings(await read_fields(request, None))


@router.get("/models/{model}/trace/setting", responses=oip_errors(404))
async def model_trace_settings(request: Request, model: str) -> dict[str, Any]:
    """What is traced of a model."""
    service_of(request).registry.find(model)
    return oip_control.trace_settings()


@router.post("/models/{model}/trace/setting", responses=_CHANGES)
async def change_model_trace_settings(request: Request, model: str) -> dict[str, Any]:
    """Refused unless the settings are those of the server: they cannot be changed while it runs."""
    service_of(request).registry.find(model)
    return oip_control.change_trace_settings(await read_fields(request, None))


async def _unregister(request: Request, name: str) -> Response:
    await read_fields(request, ())
    oip_control.unregister_region(service_of(request), name)
    return Response()
