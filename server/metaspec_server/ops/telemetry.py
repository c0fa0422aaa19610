"""OpenTelemetry traces, where they are configured by the standard OTEL_* environment variables."""

from __future__ import annotations

import os

from opentelemetry import trace
from starlette.types import ASGIApp

tracer = trace.get_tracer("metaspec_server")
"""Makes spans that go nowhere until tracing is set up."""


class TelemetryError(Exception):
    """Traces are asked for, but what sends them is not installed."""


def traced(app: ASGIApp) -> ASGIApp:
    """The application with a span for each request, if OTEL_EXPORTER_OTLP_ENDPOINT says where to send them.

    Raises:
        TelemetryError: the packages of the extra `telemetry` are missing.
    """
    if not any(name in os.environ for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")):
        return app
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise TelemetryError(
            f"OTEL_EXPORTER_OTLP_ENDPOINT is set, but {error.name} is not installed: pip install 'metaspec[telemetry]'"
        ) from None
    resource = Resource.create({SERVICE_NAME: os.environ.get("OTEL_SERVICE_NAME", "metaspec")})
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
    wrapped: ASGIApp = OpenTelemetryMiddleware(app, exclude_spans=["receive", "send"])
    return wrapped
