"""What callers may change in a server by the Open Inference Protocol: models, shared memory, the level of the log.

The same functions serve HTTP and gRPC. See Triton's `extension_model_repository.md`, `extension_shared_memory.md`,
`extension_logging.md` and `extension_trace.md`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from metaspec_server.core.service import Service
from metaspec_server.http.oip_parameters import (
    LOAD_PARAMETERS,
    UNLOAD_PARAMETERS,
    ProtocolError,
    is_whole,
    read_parameters,
    shown,
)
from metaspec_server.http.problems import Problem
from metaspec_server.ops.telemetry import is_traced
from metaspec_server.repository import RepositoryError

__all__ = [
    "change_log_settings",
    "change_trace_settings",
    "load_model",
    "log_settings",
    "refuse_cuda",
    "regions",
    "register_region",
    "require_control",
    "trace_settings",
    "unload_model",
    "unregister_region",
]

log = logging.getLogger(__name__)

_LEVELS = {
    "log_error": logging.ERROR,
    "log_warning": logging.WARNING,
    "log_info": logging.INFO,
    "log_verbose_level": logging.DEBUG,
}
"""Triton's settings of the levels, most severe first. Where one is on, those above it are."""


def require_control(service: Service, what: str) -> None:
    """Check that callers may change the server.

    Args:
        service: the service.
        what: what they would do.

    Raises:
        Problem: 403 if they may not.
    """
    settings = service.settings
    if not settings.allows_control:
        automatic = "it has no API keys, and its address is no loopback address; --model-control allows it"
        reason = automatic if settings.model_control is None else "--no-model-control"
        raise Problem(403, f"this server does not let callers {what} ({reason})")


async def load_model(service: Service, model: str, asked: Mapping[str, Any]) -> None:
    """Load the newest versions of a model from the repository, also after it was unloaded.

    Args:
        service: the service.
        model: name of the model.
        asked: fields of the request.

    Raises:
        ProtocolError: parameters that are not supported.
        Problem: 403 if callers may not; 400 if the model cannot be loaded.
        UnknownModel: it is not in the repository.
    """
    require_control(service, "load and unload models")
    read_parameters(asked, "the load request", LOAD_PARAMETERS)
    try:
        await service.registry.load(model)
    except RepositoryError as error:
        raise Problem(400, str(error)) from None


async def unload_model(service: Service, model: str, asked: Mapping[str, Any]) -> None:
    """Stop serving a model, once its accepted requests are finished, until it is loaded again.

    Args:
        service: the service.
        model: name of the model.
        asked: fields of the request.

    Raises:
        ProtocolError: parameters that are not supported.
        Problem: 403 if callers may not.
        UnknownModel: it is not served.
    """
    require_control(service, "load and unload models")
    read_parameters(asked, "the unload request", UNLOAD_PARAMETERS)
    await service.registry.unload(model)


def register_region(service: Service, name: str, asked: Mapping[str, Any]) -> None:
    """Register a region of system shared memory.

    Args:
        service: the service.
        name: name of the region.
        asked: `key`, `offset` (0 by default) and `byte_size`.

    Raises:
        ProtocolError: a field is missing or of another type.
        Problem: 403 if callers may not.
        InvalidSharedMemory: the name is taken, or the shared memory cannot be used.
    """
    require_control(service, "register shared memory")
    key, offset, size = asked.get("key"), asked.get("offset", 0), asked.get("byte_size")
    if not isinstance(key, str):
        raise ProtocolError(f"key must be the name of a shared memory object, got {shown(key)}")
    for field, value in (("offset", offset), ("byte_size", size)):
        if not is_whole(value):
            raise ProtocolError(f"{field} must be a whole number of bytes, got {shown(value)}")
    service.shared_memory.register(name, key, int(offset), int(size or 0))


def unregister_region(service: Service, name: str) -> None:
    """Forget a region of system shared memory, or all of them if the name is empty.

    Raises:
        Problem: 403 if callers may not.
    """
    require_control(service, "register shared memory")
    service.shared_memory.unregister(name)


def regions(service: Service, name: str = "") -> list[dict[str, Any]]:
    """A registered region, or all of them if the name is empty.

    Raises:
        UnknownRegion: it is not registered.
    """
    return [
        {"name": region.name, "key": region.key, "offset": region.offset, "byte_size": region.nbytes}
        for region in service.shared_memory.regions(name)
    ]


def refuse_cuda() -> None:
    """CUDA shared memory is not supported.

    Raises:
        ProtocolError: always.
    """
    raise ProtocolError("CUDA shared memory is not supported here: register system shared memory")


def log_settings() -> dict[str, bool | int | str]:
    """What is logged, in Triton's terms."""
    level = logging.getLogger().level
    on: dict[str, bool | int | str] = {name: level <= number for name, number in _LEVELS.items()}
    return {"log_file": "", **on, "log_verbose_level": int(level <= logging.DEBUG), "log_format": "ISO8601"}


def change_log_settings(service: Service, asked: Mapping[str, Any]) -> dict[str, bool | int | str]:
    """Change the level of the log until the server ends; returns the settings after it.

    Args:
        service: the service.
        asked: new values of some of the settings. A level that is switched on brings those above it, one that is switched off
            takes those below it along.

    Raises:
        ProtocolError: a setting is unknown, cannot be changed, or contradicts another.
        Problem: 403 if callers may not.
    """
    current = log_settings()
    if not asked:
        return current
    require_control(service, "change the level of the log")
    for name, value in asked.items():
        if name not in current:
            raise ProtocolError(f"unknown log setting {shown(name)}; known are {', '.join(current)}")
        if name == "log_verbose_level" and not (is_whole(value) and value <= 1):
            raise ProtocolError(f"{name} must be 0, or 1 for the level debug, got {shown(value)}")
        if name in _LEVELS and name != "log_verbose_level" and not isinstance(value, bool):
            raise ProtocolError(f"{name} must be true or false, got {shown(value)}")
        if name not in _LEVELS and value != current[name]:
            raise ProtocolError(f"{name} cannot be changed, got {shown(value)}: the log goes to standard error")
    levels = list(_LEVELS)
    least = max((n + 1 for n, name in enumerate(levels) if asked.get(name)), default=1)
    most = min((n for n, name in enumerate(levels) if name in asked and not asked[name]), default=len(levels))
    if most < least:
        raise ProtocolError(
            f"errors are always logged, and each level only with those before it: {', '.join(levels)}; got {shown(dict(asked))}"
        )
    number = min(max(sum(bool(current[name]) for name in levels), least), most)
    level = _LEVELS[levels[number - 1]]
    logging.getLogger().setLevel(level)
    log.warning("a caller has set the level of the log to %s", logging.getLevelName(level).lower())
    return log_settings()


def trace_settings() -> dict[str, Any]:
    """What is traced, in Triton's terms: every request, with OpenTelemetry, or nothing."""
    traced = is_traced()
    return {
        "trace_level": ["TIMESTAMPS"] if traced else ["OFF"],
        "trace_rate": "1",
        "trace_count": "-1",
        "log_frequency": "0",
        "trace_file": "",
        "trace_mode": "opentelemetry",
    }


def change_trace_settings(asked: Mapping[str, Any]) -> dict[str, Any]:
    """The trace settings, if a caller asks for no others: they cannot be changed.

    Args:
        asked: new values of some of the settings; None for the default.

    Raises:
        ProtocolError: a setting is unknown, or would change.
    """
    current = trace_settings()
    for name, value in asked.items():
        if name not in current:
            raise ProtocolError(f"unknown trace setting {shown(name)}; known are {', '.join(current)}")
        if value not in (None, [], current[name], [current[name]]):
            raise ProtocolError(
                f"{name} cannot be changed while the server runs, got {shown(value)}: traces are those of OpenTelemetry, "
                "set up by OTEL_EXPORTER_OTLP_ENDPOINT and other OTEL_ variables before it starts"
            )
    return current
