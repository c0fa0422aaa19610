"""What the Open Inference Protocol says of a server and its models, in Triton's JSON: metadata, configuration, statistics.

The messages of the protocol over gRPC have the same fields (`oip_grpc.messages`). See Triton's
`extension_model_configuration.md`, `extension_statistics.md` and `extension_model_repository.md`.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from metaspec_contract.model import METADATA_KEY, PACKED_STRUCTURES
from metaspec_server import __version__
from metaspec_server.core.engine import Description
from metaspec_server.core.priority import DEFAULT_PRIORITY, LOWEST_PRIORITY
from metaspec_server.core.served_model import ServedModel
from metaspec_server.core.service import Service
from metaspec_server.http.oip_codec import describe

__all__ = ["model_config", "model_metadata", "model_statistics", "repository_index", "server_metadata"]

_EXTENSIONS = (
    "binary_tensor_data",
    "logging",
    "model_configuration",
    "model_repository",
    "schedule_policy",
    "statistics",
    "system_shared_memory",
    "trace",
    PACKED_STRUCTURES,
    "metaspec_output_datatype",
)


def server_metadata() -> dict[str, Any]:
    """Name, version and extensions of the server."""
    return {"name": "metaspec", "version": __version__, "extensions": list(_EXTENSIONS)}


def model_metadata(service: Service, model: str, version: str | None) -> dict[str, Any]:
    """Tensors of a model and, as `parameters`, its metadata.

    Raises:
        UnknownModel, StillLoading: it is not served, or not yet.
    """
    served = service.registry.find(model, version)
    return {
        "name": served.name,
        "versions": [str(one.version) for one in sorted(_versions(service, model), key=lambda one: one.version)],
        "platform": "onnxruntime_onnx",
        "inputs": describe(served.about.inputs),
        "outputs": describe(served.about.outputs),
        "parameters": served.about.metadata.model_dump(mode="json"),
    }


def model_config(service: Service, model: str, version: str | None) -> dict[str, Any]:
    """Triton's configuration of a model, as its server would state it. The parameter `metaspec` holds the metadata.

    Raises:
        UnknownModel, StillLoading: it is not served, or not yet.
    """
    served, settings = service.registry.find(model, version), service.settings
    queue_policy = {
        "timeout_action": "REJECT",
        "default_timeout_microseconds": round(1e6 * settings.request_timeout),
        "allow_timeout_override": True,
    }
    return {
        "name": served.name,
        "platform": "onnxruntime_onnx",
        "backend": "onnxruntime",
        "version_policy": {"latest": {"num_versions": settings.keep_versions}},
        "max_batch_size": service.limit,
        "input": _inputs(served.about),
        "output": [_tensor(tensor) for tensor in describe(served.about.outputs)],
        "instance_group": [{"name": served.name, "kind": "KIND_AUTO", "count": served.queue.engines}],
        "dynamic_batching": {
            "max_queue_delay_microseconds": 0,
            "priority_levels": LOWEST_PRIORITY,
            "default_priority_level": DEFAULT_PRIORITY,
            "default_queue_policy": queue_policy,
        },
        "default_model_filename": "model.onnx",
        "parameters": {METADATA_KEY: {"string_value": served.about.metadata.model_dump_json()}},
        "response_cache": {"enable": settings.cache_mb > 0},
        "model_transaction_policy": {"decoupled": False},
    }


def model_statistics(service: Service, model: str | None = None, version: str | None = None) -> dict[str, Any]:
    """Statistics of a version, of all versions of a model, or of all models.

    Raises:
        UnknownModel, StillLoading: it is not served, or not yet.
    """
    if not model:
        chosen = service.registry.served()
    elif version:
        chosen = [service.registry.find(model, version)]
    else:
        service.registry.find(model)
        chosen = _versions(service, model)
    return {"model_stats": [_statistics(served) for served in chosen]}


def repository_index(service: Service, only_ready: bool) -> list[dict[str, str]]:
    """Models and versions: the served ones, those that are still to load, and those that cannot be served, with the reason.

    Args:
        service: the service.
        only_ready: whether to leave out those that do not take work.
    """
    registry = service.registry
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
    index += [{"name": name, "version": "", "state": "LOADING"} for name in registry.expected]
    if only_ready:
        index = [entry for entry in index if entry["state"] == "READY"]
    return sorted(index, key=lambda entry: (entry["name"], int(entry["version"] or 0)))


def _versions(service: Service, model: str) -> list[ServedModel]:
    return [served for served in service.registry.served() if served.name == model]


def _tensor(tensor: dict[str, Any]) -> dict[str, Any]:
    return {"name": tensor["name"], "data_type": f"TYPE_{tensor['datatype']}", "dims": tensor["shape"][1:]}


def _inputs(about: Description) -> list[dict[str, Any]]:
    optional = {condition.name: {"optional": True} for condition in about.metadata.conditions}
    return [
        {**_tensor(tensor), "format": "FORMAT_NONE", **optional.get(tensor["name"], {})}
        for tensor in describe(about.inputs)
    ]


def _statistics(served: ServedModel) -> dict[str, Any]:
    counts = served.statistics.counts()
    return {
        "name": served.name,
        "version": str(served.version),
        "last_inference": counts.last_inference,
        "inference_count": counts.inferences,
        "execution_count": counts.executions,
        "inference_stats": asdict(counts.requests),
        "response_stats": {},
        "batch_stats": [{"batch_size": size, **asdict(times)} for size, times in sorted(counts.batches.items())],
        "memory_usage": [],
    }
