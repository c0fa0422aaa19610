"""Methods of the service `inference.GRPCInferenceService` that take one message and need no tensors, and their roles."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from google.protobuf.json_format import ParseDict
from google.protobuf.wrappers_pb2 import Int32Value, StringValue
from tritonclient.grpc import service_pb2 as pb

from metaspec_server.core.errors import StillLoading, UnknownModel
from metaspec_server.core.keys import Role
from metaspec_server.core.service import Service
from metaspec_server.http import oip_control, oip_models
from metaspec_server.http.oip_parameters import ProtocolError
from metaspec_server.http.problems import Problem
from metaspec_server.oip_grpc.messages import parameters_of

__all__ = ["METHODS", "SERVICE", "Method"]

SERVICE = "inference.GRPCInferenceService"
"""Name of the protocol's service."""

_CONTROL = (Role.CONTROL,)
_SERVING, _NOT_SERVING = 1, 2  # of grpc.health.v1.HealthCheckResponse


@dataclass(frozen=True)
class Method:
    """A method of a service.

    Attributes:
        request: class of its request; None if the request has no fields, and is not received.
        answer: function that returns the answer to a request.
        roles: roles of which it needs one; none if it needs no key.
    """

    request: Any
    answer: Callable[[Service, Any], Awaitable[Any]]
    roles: tuple[Role, ...] = (Role.INFER,)

    def changes_settings(self, asked: Any) -> bool:
        """Whether a request asks for settings to be changed, for which its caller needs the role `control`."""
        return bool(getattr(asked, "settings", None))


async def _server_live(service: Service, asked: Any) -> Any:
    return pb.ServerLiveResponse(live=True)


async def _server_ready(service: Service, asked: Any) -> Any:
    return pb.ServerReadyResponse(ready=not service.why_not_ready())


async def _model_ready(service: Service, asked: Any) -> Any:
    try:
        return pb.ModelReadyResponse(ready=service.registry.find(asked.name, asked.version).ready)
    except (UnknownModel, StillLoading):
        return pb.ModelReadyResponse(ready=False)


async def _server_metadata(service: Service, asked: Any) -> Any:
    return ParseDict(oip_models.server_metadata(), pb.ServerMetadataResponse())


async def _model_metadata(service: Service, asked: Any) -> Any:
    metadata = oip_models.model_metadata(service, asked.name, asked.version)
    del metadata["parameters"]  # there is no field for it: the configuration has it
    return ParseDict(metadata, pb.ModelMetadataResponse())


async def _model_config(service: Service, asked: Any) -> Any:
    config = oip_models.model_config(service, asked.name, asked.version)
    return ParseDict({"config": config}, pb.ModelConfigResponse())


async def _statistics(service: Service, asked: Any) -> Any:
    if asked.version and not asked.name:
        raise ProtocolError(f"version needs the name of a model, got {asked.version[:60]!r} without one")
    return ParseDict(oip_models.model_statistics(service, asked.name, asked.version), pb.ModelStatisticsResponse())


async def _index(service: Service, asked: Any) -> Any:
    _check_repository(asked)
    return ParseDict({"models": oip_models.repository_index(service, asked.ready)}, pb.RepositoryIndexResponse())


async def _load(service: Service, asked: Any) -> Any:
    _check_repository(asked)
    await oip_control.load_model(service, asked.model_name, {"parameters": parameters_of(asked.parameters)})
    return pb.RepositoryModelLoadResponse()


async def _unload(service: Service, asked: Any) -> Any:
    _check_repository(asked)
    await oip_control.unload_model(service, asked.model_name, {"parameters": parameters_of(asked.parameters)})
    return pb.RepositoryModelUnloadResponse()


async def _regions(service: Service, asked: Any) -> Any:
    regions = {region["name"]: region for region in oip_control.regions(service, asked.name)}
    return ParseDict({"regions": regions}, pb.SystemSharedMemoryStatusResponse())


async def _register_region(service: Service, asked: Any) -> Any:
    fields = {"key": asked.key, "offset": asked.offset, "byte_size": asked.byte_size}
    oip_control.register_region(service, asked.name, fields)
    return pb.SystemSharedMemoryRegisterResponse()


async def _unregister_region(service: Service, asked: Any) -> Any:
    oip_control.unregister_region(service, asked.name)
    return pb.SystemSharedMemoryUnregisterResponse()


async def _cuda_regions(service: Service, asked: Any) -> Any:
    if asked.name:
        oip_control.refuse_cuda()
    return pb.CudaSharedMemoryStatusResponse()


async def _register_cuda_region(service: Service, asked: Any) -> Any:
    oip_control.refuse_cuda()


async def _unregister_cuda_region(service: Service, asked: Any) -> Any:
    if asked.name:
        oip_control.refuse_cuda()
    return pb.CudaSharedMemoryUnregisterResponse()


async def _log_settings(service: Service, asked: Any) -> Any:
    wanted = {name: _value(setting, "parameter_choice") for name, setting in asked.settings.items()}
    answer = pb.LogSettingsResponse()
    for name, value in oip_control.change_log_settings(service, wanted).items():
        kinds = {bool: "bool_param", int: "uint32_param", str: "string_param"}
        setattr(answer.settings[name], kinds[type(value)], value)
    return answer


async def _trace_settings(service: Service, asked: Any) -> Any:
    if asked.model_name:
        service.registry.find(asked.model_name)
    wanted = {name: list(setting.value) for name, setting in asked.settings.items()}
    answer = pb.TraceSettingResponse()
    for name, value in oip_control.change_trace_settings(wanted).items():
        answer.settings[name].value.extend([value] if isinstance(value, str) else value)
    return answer


async def _health(service: Service, asked: Any) -> Any:
    if asked.value not in ("", SERVICE):
        raise Problem(404, f"no service {asked.value[:60]!r} here; there is {SERVICE}")
    return Int32Value(value=_NOT_SERVING if service.why_not_ready() else _SERVING)


def _check_repository(asked: Any) -> None:
    if asked.repository_name:
        raise Problem(
            400, f"repository_name must be empty, there is one repository; got {asked.repository_name[:60]!r}"
        )


def _value(setting: Any, choice: str) -> Any:
    field = setting.WhichOneof(choice)
    return None if field is None else getattr(setting, field)


METHODS = {
    f"/{SERVICE}/{name}": method
    for name, method in {
        # Probes, which need no key: a caller who sends no message, or a large one, is answered all the same.
        "ServerLive": Method(None, _server_live, ()),
        "ServerReady": Method(None, _server_ready, ()),
        "ModelReady": Method(pb.ModelReadyRequest, _model_ready),
        "ServerMetadata": Method(pb.ServerMetadataRequest, _server_metadata),
        "ModelMetadata": Method(pb.ModelMetadataRequest, _model_metadata),
        "ModelConfig": Method(pb.ModelConfigRequest, _model_config),
        "ModelStatistics": Method(pb.ModelStatisticsRequest, _statistics),
        "RepositoryIndex": Method(pb.RepositoryIndexRequest, _index),
        "RepositoryModelLoad": Method(pb.RepositoryModelLoadRequest, _load, _CONTROL),
        "RepositoryModelUnload": Method(pb.RepositoryModelUnloadRequest, _unload, _CONTROL),
        "SystemSharedMemoryStatus": Method(pb.SystemSharedMemoryStatusRequest, _regions, _CONTROL),
        "SystemSharedMemoryRegister": Method(pb.SystemSharedMemoryRegisterRequest, _register_region, _CONTROL),
        "SystemSharedMemoryUnregister": Method(pb.SystemSharedMemoryUnregisterRequest, _unregister_region, _CONTROL),
        "CudaSharedMemoryStatus": Method(pb.CudaSharedMemoryStatusRequest, _cuda_regions, _CONTROL),
        "CudaSharedMemoryRegister": Method(pb.CudaSharedMemoryRegisterRequest, _register_cuda_region, _CONTROL),
        "CudaSharedMemoryUnregister": Method(pb.CudaSharedMemoryUnregisterRequest, _unregister_cuda_region, _CONTROL),
        "LogSettings": Method(pb.LogSettingsRequest, _log_settings, (Role.INFER, Role.CONTROL)),
        "TraceSetting": Method(pb.TraceSettingRequest, _trace_settings, (Role.INFER, Role.CONTROL)),
    }.items()
} | {
    # Messages of one field each, on the wire the same as these of protobuf itself.
    "/grpc.health.v1.Health/Check": Method(StringValue, _health, ()),
}
"""The methods by path."""
