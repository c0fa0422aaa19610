"""OpenTelemetry traces, configured by the standard OTEL_* environment variables."""

from __future__ import annotations

import os

from opentelemetry import trace
from starlette.types import ASGIApp

__all__ = ["TelemetryError", "traced"]

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


class TelemetryError(Exception):
    """Traces are configured, but the packages that send them are not installed."""


def traced(app: ASGIApp) -> ASGIApp:
    """The application with a span for each request, if an OTLP endpoint is configured; else the application itself.

    Raises:
        TelemetryError: an endpoint is configured, but the packages of the extra `telemetry` are missing.
    """
    endpoint = next((name for name in _ENDPOINTS if name in os.environ), None)
    if endpoint is None:
        return app
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise TelemetryError(
            f"{endpoint} is set, but {error.name} is not installed: pip install 'metaspec-server[telemetry]'"
        ) from None
    resource = Resource.create({SERVICE_NAME: os.environ.get("OTEL_SERVICE_NAME", "metaspec")})
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
    wrapped: ASGIApp = OpenTelemetryMiddleware(app, exclude_spans=["receive", "send"])
    return wrapped
