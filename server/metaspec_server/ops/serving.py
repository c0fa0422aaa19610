"""A running server: its event loop, how it starts and how it shuts down."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING

import uvicorn

from metaspec_server.blocking import leave_if_hanging
from metaspec_server.core.keys import ApiKeyError, ApiKeys
from metaspec_server.core.served_model import ServedModel
from metaspec_server.core.service import Service
from metaspec_server.engines.factory import MissingEngine, engine_factory
from metaspec_server.http.access_log import record_refusal
from metaspec_server.http.app import create_app
from metaspec_server.http.request_head import protocol_with_limits
from metaspec_server.ops.listening import Listener, listening
from metaspec_server.ops.logs import set_up_logging
from metaspec_server.ops.metrics import Metrics
from metaspec_server.ops.telemetry import TelemetryError, require_telemetry
from metaspec_server.repository import NothingToServe, RepositoryError
from metaspec_server.settings import Settings

if TYPE_CHECKING:
    from metaspec_server.oip_grpc.server import GrpcServer

__all__ = ["REFUSALS", "serve"]

_GRACE = 5  # seconds for a last micro-batch, and to send answers
_KEEP_ALIVE = 75  # seconds; balancers keep idle connections for 60: whoever closes first must not be sent a request
_ENDED_AT_ONCE = b"metaspec-serve: ended by a second signal, before the shutdown was complete\n"

REFUSALS = (RepositoryError, NothingToServe, MissingEngine, ApiKeyError, TelemetryError, OSError)
"""Why a server does not start. The message is one line for its user."""


def serve(settings: Settings) -> None:
    """Serve a model repository until the process is told to stop.

    Raises:
        REFUSALS: there is nothing to serve, or it cannot be served on this machine.
        KeyboardInterrupt: Ctrl-C has shut the server down in good order.
    """
    set_up_logging(settings.log_level, settings.log_format)
    with listening(settings) as listener, asyncio.Runner(loop_factory=_loop_factory()) as runner:
        number = runner.run(_serve(settings, listener))
    if number == signal.SIGINT:
        raise KeyboardInterrupt


async def _serve(settings: Settings, listener: Listener) -> int:
    """Serve until a signal comes, and return its number."""
    require_telemetry()
    api_keys = ApiKeys(settings.api_keys)
    metrics = Metrics()
    service = Service(settings, engine_factory(settings, metrics.observe), metrics)
    base = settings.root_path if settings.uds else listener.url + settings.root_path
    url = listener.url if settings.uds else base
    config = uvicorn.Config(
        create_app(service, metrics, api_keys),
        http=protocol_with_limits(settings.body_timeout, partial(record_refusal, metrics)),
        log_config=None,
        access_log=False,
        timeout_keep_alive=_KEEP_ALIVE,
        timeout_graceful_shutdown=settings.shutdown_timeout + _GRACE,
        lifespan="off",
        server_header=False,
        proxy_headers=False,
        ssl_context_factory=(lambda *_: tls) if (tls := listener.tls) else None,
    )
    places = f"page {base}/  documentation {base}/docs  metrics {base}/metrics  health {base}/v2/health/ready"
    grpc_server = None
    if settings.grpc_port is not None:
        grpc_server = _grpc_server(service, metrics, api_keys)
        places += f"  gRPC {await grpc_server.start(settings)}"
    server = _Server(config, service, f"MetaSpec serves at {url}  ({places})", grpc_server)
    print(f"MetaSpec listens at {url}  (loading {', '.join(service.registry.expected)})", flush=True)
    watching_keys = asyncio.create_task(api_keys.watch())
    await server.serve(sockets=[listener.socket])
    watching_keys.cancel()
    listener.close()
    if not server.loading.cancelled():  # by a signal
        server.loading.result()
    leave_if_hanging(130 if server.signal == signal.SIGINT else 0)
    return server.signal


class _Server(uvicorn.Server):
    """Answers at once and loads the models then; shuts down in two steps, so that behind a balancer no request is lost.

    After SIGTERM the server is not ready, but still serves, and each connection ends with its next answer, for the time of
    `shutdown_delay`: the balancer notices, and sends requests elsewhere. Then the server takes no more connections, and
    finishes the requests that it has accepted. SIGINT, which people send, leaves out the first step. A second signal ends the
    process at once.

    Args:
        config: configuration of uvicorn.
        service: service whose models are loaded.
        greeting: line that is printed when all models are loaded.
        grpc_server: server for gRPC, if there is one; it is shut down in the same steps.

    Attributes:
        loading: the task that loads the models.
        signal: number of the signal that ended the server; 0 for none.
    """

    loading: asyncio.Task[None]

    def __init__(
        self, config: uvicorn.Config, service: Service, greeting: str, grpc_server: GrpcServer | None = None
    ) -> None:
        super().__init__(config)
        self._service, self._greeting, self._grpc_server = service, greeting, grpc_server
        self._until = 0.0  # time until which the first step of the shutdown lasts
        self.signal = 0

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept connections, and begin to load the models."""
        await super().startup(sockets)
        self.loading = asyncio.create_task(self._service.load_models(_say_loaded))
        self.loading.add_done_callback(self._loaded)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to shut down; at the second signal, end the process."""
        if self.signal:
            os.write(2, _ENDED_AT_ONCE)
            os._exit(128 + sig)
        self.signal = sig
        self._until = time.monotonic() + (self._service.settings.shutdown_delay if sig == signal.SIGTERM else 0)
        self._service.draining = self.should_exit = True

    async def on_tick(self, counter: int) -> bool:
        """Whether to take no more connections. Called every 0.1 s."""
        return await super().on_tick(counter) and time.monotonic() >= self._until

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Finish accepted requests, and answer those that take too long with 503 while their connections are open."""
        self.loading.cancel()
        timeout = self._service.settings.shutdown_timeout
        until = time.monotonic() + timeout
        answering = {asyncio.create_task(super().shutdown(sockets))}
        if self._grpc_server is not None:
            answering.add(asyncio.create_task(self._grpc_server.stop(timeout + _GRACE)))
        await asyncio.wait(answering, timeout=timeout)
        await self._service.close(max(0.0, until - time.monotonic()))
        await asyncio.gather(*answering)

    def _loaded(self, loading: asyncio.Task[None]) -> None:
        if loading.cancelled():
            return
        if loading.exception() is None:
            print(self._greeting, flush=True)
        else:
            self.should_exit = True


def _grpc_server(service: Service, metrics: Metrics, api_keys: ApiKeys) -> GrpcServer:
    try:
        from metaspec_server.oip_grpc import server
    except ImportError as error:
        raise MissingEngine(
            f"--grpc-port needs {error.name}, which is not installed: pip install 'metaspec-server[grpc]'"
        ) from None
    return server.GrpcServer(service, metrics, api_keys)


def _say_loaded(model: ServedModel) -> None:
    print(f"{model.name} version {model.version} on {model.about.platform}", flush=True)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """The event loop of uvloop, where it is installed: not on Windows."""
    try:
        import uvloop
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory
