"""OpenTelemetry traces, configured by the standard OTEL_* environment variables."""

from __future__ import annotations

import importlib
import os

from opentelemetry import trace
from starlette.types import ASGIApp

__all__ = ["TelemetryError", "is_traced", "require_telemetry", "traced"]

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")

_PACKAGES = (
    "opentelemetry.sdk.trace",
    "opentelemetry.exporter.otlp.proto.http.trace_exporter",
    "opentelemetry.instrumentation.asgi",
)
"""Packages of the extra `telemetry`."""


class TelemetryError(Exception):
    """Traces are configured, but the packages that send them are not installed."""


def is_traced() -> bool:
    """Whether an OTLP endpoint is configured, so that traces are sent."""
    return _endpoint() is not None


def require_telemetry() -> None:
    """Check that the packages which send traces are installed, if an OTLP endpoint is configured.

    Raises:
        TelemetryError: an endpoint is configured, but the packages of the extra `telemetry` are missing.
    """
    endpoint = _endpoint()
    if endpoint is None:
        return
    try:
        for package in _PACKAGES:
            importlib.import_module(package)
    except ImportError as error:
        raise TelemetryError(
            f"{endpoint} is set, but {error.name} is not installed: pip install 'metaspec-server[telemetry]'"
        ) from None


def traced(app: ASGIApp) -> ASGIApp:
    """The application with a span for each request, if an OTLP endpoint is configured; else the application itself.

    Raises:
        TelemetryError: as `require_telemetry`.
    """
    if _endpoint() is None:
        return app
    require_telemetry()
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
    from opentelemetry.sdk.resources import SERVICE_NAME, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    resource = Resource.create({SERVICE_NAME: os.environ.get("OTEL_SERVICE_NAME", "metaspec")})
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
    wrapped: ASGIApp = OpenTelemetryMiddleware(app, exclude_spans=["receive", "send"])
    return wrapped


def _endpoint() -> str | None:
    """Environment variable that names an OTLP endpoint, if one is set."""
    return next((name for name in _ENDPOINTS if name in os.environ), None)
