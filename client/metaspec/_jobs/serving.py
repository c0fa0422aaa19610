"""The running service: its socket, its event loop, and how it ends."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import uvicorn

from metaspec._jobs.app import create_app
from metaspec._jobs.guard import is_loopback
from metaspec._jobs.jobs import Jobs
from metaspec._jobs.runner import Runner
from metaspec._run_lock import locked
from metaspec._working_folder import WorkingFolder

_LARGEST_HEAD = 16 << 10  # bytes of a request's head
_MOST = 200  # connections and requests at once; each page that watches holds one
_KEEP_ALIVE = 75  # seconds
_GRACE = 5  # seconds for answers to end; events end at once


def serve(
    folder: Path, *, url: str, api_key: str | None, host: str, port: int, token: str | None, workers: int
) -> None:
    """Serve the jobs of a folder until the process is told to stop; see `metaspec.jobs.serve`."""
    if token is None and not is_loopback(host):
        raise ValueError(f"--host {host} is reached from other machines, which needs --token-file")
    folder.mkdir(parents=True, exist_ok=True)
    working = WorkingFolder(folder)
    environment = {**os.environ, "METASPEC_URL": url, "PYTHONUNBUFFERED": "1", "COLUMNS": "100"}
    if api_key is not None:
        environment["METASPEC_API_KEY"] = api_key
    with locked(working.path), _listening(host, port) as listener:
        jobs = Jobs(working)
        app = create_app(
            jobs,
            Runner(jobs, workers, environment),
            token=token,
            host=host,
            stopping=lambda: server.should_exit,
            said=_say,
        )
        server = uvicorn.Server(
            uvicorn.Config(
                app,
                http="h11",
                ws="none",
                lifespan="on",
                log_level="warning",
                access_log=False,
                server_header=False,
                proxy_headers=False,
                h11_max_incomplete_event_size=_LARGEST_HEAD,
                limit_concurrency=_MOST,
                timeout_keep_alive=_KEEP_ALIVE,
                timeout_graceful_shutdown=_GRACE,
            )
        )
        address, number = listener.getsockname()[:2]
        shown = f"[{address}]" if ":" in address else address
        at_once = "1 job runs" if workers == 1 else f"{workers} jobs run"
        _say(f"MetaSpec jobs at http://{shown}:{number}/ in {working.path}; {at_once} at once, with models of {url}")
        server.run(sockets=[listener])


def _listening(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        OSError: the address cannot be had; it is named.
    """
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen()
    except OSError as error:
        listener.close()
        raise OSError(f"cannot listen on {host}:{port}: {error.strerror}") from None
    return listener


def _say(text: str) -> None:
    print(text, flush=True)
