"""`metaspec-serve`: serve a model repository."""

from __future__ import annotations

import socket
import sys

import uvicorn
from pydantic import ValidationError
from pydantic_settings import CliApp, SettingsError

from metaspec_server.app import create_app
from metaspec_server.repository import RepositoryError
from metaspec_server.service import Service
from metaspec_server.settings import Settings


def main() -> None:
    """Entry point of the command: exit code 2 and one line when it cannot serve, no traceback."""
    try:
        settings = CliApp.run(Settings)
        listener = _listen(settings)
        service = Service(settings)
    except ValidationError as error:
        first = error.errors()[0]
        name = "-".join(str(part) for part in first["loc"]).replace("_", "-")
        _fail(f"--{name}: {first['msg']}")
    except (RepositoryError, SettingsError, OSError) as error:
        _fail(str(error))
    host, port = listener.getsockname()[:2]
    url = f"http://{host}:{port}"
    for model in service.models.values():
        print(
            f"{model.name} version {model.version} on {model.engine.platform}, {settings.threads} threads", flush=True
        )
    print(f"MetaSpec serves at {url}  (documentation {url}/docs, health {url}/v2/health/ready)", flush=True)
    config = uvicorn.Config(
        create_app(service), log_level="warning", timeout_graceful_shutdown=settings.shutdown_timeout, lifespan="on"
    )
    uvicorn.Server(config).run(sockets=[listener])


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
