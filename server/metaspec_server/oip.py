"""The routes of the Open Inference Protocol v2, so that stock `tritonclient.http` works unchanged."""

from __future__ import annotations

import asyncio
from importlib.metadata import version as package_version
from typing import Any

from fastapi import APIRouter, Request, Response

from metaspec_server import protocol
from metaspec_server.bodies import read_body
from metaspec_server.problems import Problem
from metaspec_server.service import Service

router = APIRouter(prefix="/v2", tags=["Open Inference Protocol"])


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


@router.get("")
async def server_metadata() -> dict[str, Any]:
    """Name, version and extensions of the server."""
    return {
        "name": "metaspec",
        "version": package_version("metaspec"),
        "extensions": ["binary_tensor_data", "model_repository(index)"],
    }


@router.get("/health/live")
async def live() -> Response:
    """200 as long as the server answers."""
    return Response()


@router.get("/health/ready")
async def ready(request: Request) -> Response:
    """200 when every model is loaded, warm and takes work; 503 otherwise."""
    return Response(status_code=200 if _service(request).ready else 503)


@router.get("/models/{model}")
@router.get("/models/{model}/versions/{version}")
async def model_metadata(request: Request, model: str, version: str | None = None) -> dict[str, Any]:
    """Tensors of a model, and, as `parameters`, what it says of itself: process, wavelengths, channels, quality."""
    served = _service(request).model(model, version)
    return {
        "name": served.name,
        "versions": [str(served.version)],
        "platform": "onnxruntime_onnx",
        "inputs": protocol.describe(served.engine.inputs),
        "outputs": protocol.describe(served.engine.outputs),
        "parameters": served.engine.metadata.model_dump(mode="json"),
    }


@router.get("/models/{model}/config")
@router.get("/models/{model}/versions/{version}/config")
async def model_config(request: Request, model: str, version: str | None = None) -> dict[str, Any]:
    """The part of Triton's model configuration that clients read."""
    served = _service(request).model(model, version)
    return {
        "name": served.name,
        "platform": "onnxruntime_onnx",
        "backend": "onnxruntime",
        "max_batch_size": _service(request).settings.max_structures,
        "input": [_config_tensor(tensor) for tensor in protocol.describe(served.engine.inputs)],
        "output": [_config_tensor(tensor) for tensor in protocol.describe(served.engine.outputs)],
    }


@router.get("/models/{model}/ready")
@router.get("/models/{model}/versions/{version}/ready")
async def model_ready(request: Request, model: str, version: str | None = None) -> Response:
    """200 when the model takes work; 404 when there is none of that name and version."""
    served = _service(request).model(model, version)
    return Response(status_code=200 if served.batcher.alive else 503)


@router.post("/repository/index")
async def repository_index(request: Request) -> list[dict[str, str]]:
    """Models and versions that are served."""
    return [
        {"name": model.name, "version": str(model.version), "state": "READY" if model.batcher.alive else "UNAVAILABLE"}
        for model in _service(request).models.values()
    ]


@router.post("/models/{model}/infer")
@router.post("/models/{model}/versions/{version}/infer")
async def infer(request: Request, model: str, version: str | None = None) -> Response:
    """Compute a model: named tensors in, named tensors out, as JSON or as raw bytes after the JSON."""
    service = _service(request)
    served = service.model(model, version)
    body = await read_body(request, service.settings.max_body_bytes)
    header_length = request.headers.get(protocol.HEADER_LENGTH)
    try:
        decoded = await asyncio.to_thread(protocol.decode_request, body, header_length, served.engine)
    except protocol.ProtocolError as error:
        raise Problem(400, str(error)) from None
    results = await service.infer(served, decoded.rows)
    content, headers = await asyncio.to_thread(protocol.encode_response, decoded, results, served.name, served.version)
    return Response(content, headers=headers)


def _config_tensor(tensor: dict[str, Any]) -> dict[str, Any]:
    return {"name": tensor["name"], "data_type": f"TYPE_{tensor['datatype']}", "dims": tensor["shape"][1:]}
