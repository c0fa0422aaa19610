"""`metaspec-serve`: serve a model repository."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Callable

import uvicorn
from pydantic import ValidationError
from pydantic_settings import CliApp, SettingsError

from metaspec_server.core.service import Service
from metaspec_server.http.app import create_app
from metaspec_server.http.auth import ApiKeyError
from metaspec_server.http.request_timeout import impatient_protocol
from metaspec_server.ops.logs import set_up_logging
from metaspec_server.ops.telemetry import TelemetryError
from metaspec_server.repository import NothingToServe, RepositoryError
from metaspec_server.settings import Settings

_GRACE = 5  # seconds for a last micro-batch, and to send answers


def main() -> None:
    """Entry point of the command: exit code 2 and one line when it cannot serve, no traceback."""
    try:
        settings = CliApp.run(Settings)
        set_up_logging(settings.log_level, settings.log_format)
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(_serve(settings))
    except ValidationError as error:
        first = error.errors()[0]
        name = "-".join(str(part) for part in first["loc"]).replace("_", "-")
        _fail(f"--{name}: {first['msg']}")
    except (RepositoryError, NothingToServe, SettingsError, ApiKeyError, TelemetryError, OSError) as error:
        _fail(str(error))
    except KeyboardInterrupt:  # Ctrl-C has ended the server in good order
        raise SystemExit(130) from None


async def _serve(settings: Settings) -> None:
    listener = _listen(settings)
    service = await Service.start(settings)
    host, port = listener.getsockname()[:2]
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    for model in service.registry.newest():
        print(f"{model.name} version {model.version} on {model.about.platform}", flush=True)
    app = create_app(service)
    places = f"page {url}/  documentation {url}/docs  metrics {url}/metrics  health {url}/v2/health/ready"
    print(f"MetaSpec serves at {url}  ({places})", flush=True)
    config = uvicorn.Config(
        app,
        http=impatient_protocol(settings.body_timeout),
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=settings.shutdown_timeout + _GRACE,
        lifespan="off",
        server_header=False,
        proxy_headers=False,
    )
    await _Server(config, service).serve(sockets=[listener])


class _Server(uvicorn.Server):
    """Lets the service finish what it has accepted, and answer the rest with 503, while connections are still open."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        closing = asyncio.create_task(self._service.close())
        await super().shutdown(sockets)
        await closing


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """The event loop of uvloop, where that exists: not on Windows."""
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
        listener.listen(2048)  # whoever reads where we serve may connect at once
    except OSError as error:
        raise OSError(f"cannot listen on {settings.host}:{settings.port}: {error.strerror}") from None
    return listener


def _fail(message: str) -> None:
    print(f"metaspec-serve: {message}", file=sys.stderr)
    raise SystemExit(2)


if __name__ == "__main__":
    main()
