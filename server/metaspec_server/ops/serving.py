"""A running server: its socket, its event loop, and how it shuts down."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

import uvicorn

from metaspec_server.core.service import Service
from metaspec_server.engines.factory import MissingEngine, engine_factory
from metaspec_server.http.app import create_app
from metaspec_server.http.auth import ApiKeyError
from metaspec_server.http.request_head import protocol_with_limits
from metaspec_server.ops.logs import set_up_logging
from metaspec_server.ops.metrics import Metrics
from metaspec_server.ops.telemetry import TelemetryError, require_telemetry
from metaspec_server.repository import NothingToServe, RepositoryError
from metaspec_server.settings import Settings

__all__ = ["REFUSALS", "serve"]

_GRACE = 5  # seconds for a last micro-batch, and to send answers

REFUSALS = (RepositoryError, NothingToServe, MissingEngine, ApiKeyError, TelemetryError, OSError)
"""Why a server does not start. The message is one line for its user."""


def serve(settings: Settings) -> None:
    """Serve a model repository until the process is told to stop.

    Raises:
        REFUSALS: there is nothing to serve, or it cannot be served on this machine.
        KeyboardInterrupt: Ctrl-C has shut the server down in good order.
    """
    set_up_logging(settings.log_level, settings.log_format)
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(_serve(settings))


async def _serve(settings: Settings) -> None:
    require_telemetry()
    listener = _listen(settings)
    metrics = Metrics()
    service = await Service.start(settings, engine_factory(settings, metrics.observe), metrics)
    host, port = listener.getsockname()[:2]
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    for model in service.registry.newest():
        print(f"{model.name} version {model.version} on {model.about.platform}", flush=True)
    app = create_app(service, metrics)
    places = f"page {url}/  documentation {url}/docs  metrics {url}/metrics  health {url}/v2/health/ready"
    print(f"MetaSpec serves at {url}  ({places})", flush=True)
    config = uvicorn.Config(
        app,
        http=protocol_with_limits(settings.body_timeout),
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=settings.shutdown_timeout + _GRACE,
        lifespan="off",
        server_header=False,
        proxy_headers=False,
    )
    await _Server(config, service).serve(sockets=[listener])


class _Server(uvicorn.Server):
    """At shutdown, finishes accepted requests and answers the others with 503 while connections are still open."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        closing = asyncio.create_task(self._service.close())
        await super().shutdown(sockets)
        await closing


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """The event loop of uvloop, where it is installed: not on Windows."""
    try:
        import uvloop
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


def _listen(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
        listener.listen(2048)  # callers may connect as soon as the address is printed
    except OSError as error:
        raise OSError(f"cannot listen on {settings.host}:{settings.port}: {error.strerror}") from None
    return listener
