"""Routes of the Open Inference Protocol v2; the stock `tritonclient.http` works unchanged."""

from __future__ import annotations

from typing import Any

import orjson
from fastapi import APIRouter, Depends, Request, Response
from starlette.responses import JSONResponse
from starlette.routing import Route

from metaspec_contract.model import PACKED_STRUCTURES
from metaspec_server import __version__
from metaspec_server.core.registry import Registry
from metaspec_server.core.served_model import ServedModel
from metaspec_server.core.service import Service
from metaspec_server.core.threads import off_loop
from metaspec_server.http.disconnect import cancel_on_disconnect
from metaspec_server.http.json_body import ANSWER_BYTES_PER_NUMBER, read_json
from metaspec_server.http.oip_body import read_request
from metaspec_server.http.oip_codec import HEADER_LENGTH, InferRequest, describe, encode_response
from metaspec_server.http.oip_parameters import (
    LOAD_PARAMETERS,
    UNLOAD_PARAMETERS,
    ProtocolError,
    check_fields,
    read_parameters,
    shown,
)
from metaspec_server.http.openapi import INFER_ANSWERS, INFER_BODY, oip_errors
from metaspec_server.http.problems import Problem
from metaspec_server.http.query import check_query, knows_query
from metaspec_server.http.request_body import RequestBody
from metaspec_server.repository import RepositoryError

__all__ = ["HOT_ROUTES", "router"]

router = APIRouter(prefix="/v2", tags=["Open Inference Protocol"], dependencies=[Depends(knows_query())])

_SMALL_JSON = 64 * 1024  # bytes of a request without tensors


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


@router.get("")
async def server_metadata() -> dict[str, Any]:
    """Name, version and extensions of the server."""
    return {
        "name": "metaspec",
        "version": __version__,
        "extensions": [
            "binary_tensor_data",
            "model_configuration",
            "model_repository",
            PACKED_STRUCTURES,
            "metaspec_output_datatype",
        ],
    }


@router.get("/health/live", responses=oip_errors())
async def live() -> dict[str, bool]:
    """200 while the server answers."""
    return {"live": True}


@router.get("/health/ready", responses=oip_errors(503))
async def ready(request: Request) -> Response:
    """200 when every model takes work; 503 otherwise."""
    is_ready = _service(request).ready
    return JSONResponse({"ready": is_ready}, 200 if is_ready else 503)


@router.get("/models/{model}", responses=oip_errors(404))
@router.get("/models/{model}/versions/{version}", responses=oip_errors(404))
async def model_metadata(request: Request, model: str, version: str | None = None) -> dict[str, Any]:
    """Tensors of a model and, as `parameters`, its metadata: process, wavelengths, channels, training, errors."""
    service = _service(request)
    served = service.registry.find(model, version)
    versions = sorted(one.version for one in service.registry.served() if one.name == served.name)
    return {
        "name": served.name,
        "versions": [str(number) for number in versions],
        "platform": "onnxruntime_onnx",
        "inputs": describe(served.about.inputs),
        "outputs": describe(served.about.outputs),
        "parameters": served.about.metadata.model_dump(mode="json"),
    }


@router.get("/models/{model}/config", responses=oip_errors(404))
@router.get("/models/{model}/versions/{version}/config", responses=oip_errors(404))
async def model_config(request: Request, model: str, version: str | None = None) -> dict[str, Any]:
    """The part of Triton's model configuration that clients read."""
    served = _service(request).registry.find(model, version)
    return {
        "name": served.name,
        "platform": "onnxruntime_onnx",
        "backend": "onnxruntime",
        "max_batch_size": _service(request).settings.max_structures,
        "input": [_config_tensor(tensor) for tensor in describe(served.about.inputs)],
        "output": [_config_tensor(tensor) for tensor in describe(served.about.outputs)],
    }


@router.get("/models/{model}/ready", responses=oip_errors(404, 503))
@router.get("/models/{model}/versions/{version}/ready", responses=oip_errors(404, 503))
async def model_ready(request: Request, model: str, version: str | None = None) -> Response:
    """200 when the model takes work; 404 when there is no such model or version."""
    served = _service(request).registry.find(model, version)
    return JSONResponse({"name": served.name, "ready": served.ready}, 200 if served.ready else 503)


@router.post("/repository/index", responses=oip_errors(408, 413, 415))
async def repository_index(request: Request) -> list[dict[str, str]]:
    """Models and versions: the served ones, and those that cannot be served, with the reason.

    The body is empty, or a JSON object whose `ready` asks for the served ones alone.
    """
    asked = await _small_json(request, ("ready",))
    only_ready = asked.get("ready", False)
    if not isinstance(only_ready, bool):
        raise ProtocolError(f"ready must be true or false, got {shown(only_ready)}")
    registry = _service(request).registry
    index = [
        {"name": model.name, "version": str(model.version), "state": "READY" if model.ready else "UNAVAILABLE"}
        for model in registry.served()
    ]
    served = {(model.name, model.version) for model in registry.served()}
    for name, version, reason in registry.failures():
        entry = {"name": name, "version": str(version) if version else "", "reason": reason}
        if (name, version) in served:  # its file was replaced by one that cannot be loaded
            next(e for e in index if e["name"] == name and e["version"] == str(version))["reason"] = reason
        else:
            index.append({**entry, "state": "UNAVAILABLE"})
    if only_ready:
        index = [entry for entry in index if entry["state"] == "READY"]
    return sorted(index, key=lambda entry: (entry["name"], int(entry["version"] or 0)))


@router.post("/repository/models/{model}/load", responses=oip_errors(403, 404, 408, 413, 415), response_class=Response)
async def load_model(request: Request, model: str) -> Response:
    """Load the newest versions of a model from the repository, also after it was unloaded. No request fails meanwhile."""
    registry = _controlled(request)
    read_parameters(await _small_json(request, ("parameters",)), "the load request", LOAD_PARAMETERS)
    try:
        await registry.load(model)
    except RepositoryError as error:
        raise Problem(400, str(error)) from None
    return Response()


@router.post(
    "/repository/models/{model}/unload", responses=oip_errors(403, 404, 408, 413, 415), response_class=Response
)
async def unload_model(request: Request, model: str) -> Response:
    """Stop serving a model, once its accepted requests are finished, until it is loaded again."""
    registry = _controlled(request)
    read_parameters(await _small_json(request, ("parameters",)), "the unload request", UNLOAD_PARAMETERS)
    await registry.unload(model)
    return Response()


@router.post("/models/{model}/infer", responses=INFER_ANSWERS, openapi_extra=INFER_BODY, response_class=Response)
@router.post(
    "/models/{model}/versions/{version}/infer",
    responses=INFER_ANSWERS,
    openapi_extra=INFER_BODY,
    response_class=Response,
)
async def infer(request: Request, model: str, version: str | None = None) -> Response:
    """Compute a model: named tensors in, named tensors out, as JSON or as raw bytes after the JSON."""
    service = _service(request)
    with service.registry.lease(model, version) as served, service.memory.lease() as memory:
        body = RequestBody(request, service.settings, memory)
        header_length = request.headers.get(HEADER_LENGTH)
        asked, rows = await read_request(
            body, header_length, served.name, served.about.inputs, served.about.outputs, service.limit
        )
        memory.shrink(sum(array.nbytes for array in rows.values()))
        await memory.grow(_answer_bytes(served, asked), service.settings.request_timeout)
        results = await cancel_on_disconnect(request, service.infer(served, rows, asked.timeout))
        nbytes = sum(array.nbytes for array in results.values())
        content, headers = await off_loop(nbytes, encode_response, asked, results, served.name, served.version)
        return Response(content, headers=headers)


def _answer_bytes(model: ServedModel, asked: InferRequest) -> int:
    """Memory of the results and of the answer that is made from them."""
    sizes = {spec.name: spec.size for spec in model.about.outputs}
    encoded = sum(sizes[name] * (8 if out.binary else ANSWER_BYTES_PER_NUMBER) for name, out in asked.outputs.items())
    return asked.rows * (4 * sum(sizes.values()) + encoded)


async def _plain_infer(request: Request) -> Response:
    version = request.path_params.get("version")
    request.scope["route"] = HOT_ROUTES[version is not None]  # as FastAPI sets it, for the metrics
    check_query(request)
    return await infer(request, request.path_params["model"], version)


HOT_ROUTES = [
    Route("/v2/models/{model}/infer", _plain_infer, methods=["POST"]),
    Route("/v2/models/{model}/versions/{version}/infer", _plain_infer, methods=["POST"]),
]
"""The same routes without FastAPI, whose overhead is a quarter of the time of a small request; it documents them."""


async def _small_json(request: Request, fields: tuple[str, ...]) -> dict[str, Any]:
    """The JSON object of a request without tensors; empty if there is no body.

    Raises:
        ProtocolError: something else, or an unknown field.
    """
    service = _service(request)
    with service.memory.lease() as memory:
        body = RequestBody(request, service.settings, memory)
        if not await body.peek(1):
            return {}
        try:
            data = await read_json(body, _SMALL_JSON)
        except orjson.JSONDecodeError as error:
            raise ProtocolError(f"the request's JSON cannot be read: {error}") from None
    if not isinstance(data, dict):
        raise ProtocolError(f"the request must be a JSON object, got {type(data).__name__}")
    check_fields(data, fields, "the request")
    return data


def _controlled(request: Request) -> Registry:
    service = _service(request)
    if not service.settings.model_control:
        raise Problem(403, "this server does not let callers load and unload models (--no-model-control)")
    return service.registry


def _config_tensor(tensor: dict[str, Any]) -> dict[str, Any]:
    return {"name": tensor["name"], "data_type": f"TYPE_{tensor['datatype']}", "dims": tensor["shape"][1:]}
