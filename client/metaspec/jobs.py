"""Many optimisations on one machine, started, watched, paused and ranked over HTTP. Needs the extra `studio`.

    serve(Path("designs"), url="http://127.0.0.1:8000", workers=2)

is what `metaspec jobs --folder designs --workers 2` does. Each job is a process of `metaspec optimise` or `metaspec polish`
in a run folder of its own; these folders are all that is kept. `docs/jobs.md` describes the page and the HTTP API.
"""

from __future__ import annotations

from pathlib import Path

from metaspec._extras import missing_extra
from metaspec._surrogate.base import DEFAULT_URL

try:
    import starlette as _starlette  # noqa: F401
    import uvicorn as _uvicorn  # noqa: F401
except ImportError as error:
    raise missing_extra("metaspec.jobs needs", error.name or "starlette", "studio") from error

from metaspec._jobs.guard import read_token
from metaspec._jobs.serving import serve as _serve

__all__ = ["DEFAULT_PORT", "read_token", "serve"]

DEFAULT_PORT = 8100
"""Port of the service."""


def __dir__() -> list[str]:
    return __all__


def serve(
    folder: Path,
    *,
    url: str = DEFAULT_URL,
    api_key: str | None = None,
    host: str = "127.0.0.1",
    port: int = DEFAULT_PORT,
    token: str | None = None,
    workers: int = 1,
) -> None:
    """Serve the jobs of a folder until the process gets SIGINT or SIGTERM. Jobs that run are paused then, and go on next time.

    Args:
        folder: working folder, created if necessary; nothing outside it is read or written.
        url: address of the server of models, for jobs that use one.
        api_key: API key of the server of models, if it requires one.
        host: address to listen at.
        port: port; 0 for a free one.
        token: what callers must send as `Authorization: Bearer TOKEN`; None, which only addresses of this machine allow, for
            nothing.
        workers: number of jobs that run at once.

    Raises:
        ValueError: another service has the folder, or there is no token for an address that other machines reach.
        OSError: the address cannot be had, or the folder not be written.
    """
    _serve(folder, url=url, api_key=api_key, host=host, port=port, token=token, workers=workers)
