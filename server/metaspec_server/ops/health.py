"""`python -m metaspec_server.ops.health`: exit status 0 if the server of this container is ready, for Docker's health checks.

The address is that of the server's own flags, variables and file .env, and no proxy is asked. It imports little, because it
runs every few seconds.
"""

from __future__ import annotations

import argparse
import http.client
import os
import socket
import ssl
import sys
from contextlib import suppress
from pathlib import Path

from metaspec_server.environment import PREFIX, read_dotenv

__all__ = ["main"]

_TIMEOUT = 4.0  # seconds
_ANY = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # addresses that are listened on, but not called


def main() -> None:
    """Ask the server whether it is ready. The first argument is the number of its process; 1 by default."""
    process = sys.argv[1] if len(sys.argv) > 1 else "1"
    flags = Path(f"/proc/{process}/cmdline").read_text().split("\0")
    dotenv: dict[str, str | None] = {}
    with suppress(OSError):  # the folder of another user's process
        dotenv = read_dotenv(Path(f"/proc/{process}/cwd/.env"))
    variables = {
        name.upper(): value
        for given in (dotenv, os.environ)
        for name, value in given.items()
        if value
        and "://" not in value  # such as METASPEC_PORT=tcp://10.0.0.1:8000: Kubernetes' link to a service "metaspec"
    }
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name, default in (("host", "127.0.0.1"), ("port", "8000"), ("uds", ""), ("tls-cert", "")):
        variable = PREFIX + name.replace("-", "_").upper()
        parser.add_argument(f"--{name}", default=variables.get(variable, default))
    settings, _ = parser.parse_known_args(flags)
    try:
        status = _ask(settings)
    except (OSError, http.client.HTTPException) as error:
        print(f"no answer: {error}")
        raise SystemExit(1) from None
    print(f"status {status}")
    raise SystemExit(status != 200)


def _ask(settings: argparse.Namespace) -> int:
    host, port = _ANY.get(settings.host, settings.host), int(settings.port)
    with (
        socket.socket(socket.AF_UNIX)
        if settings.uds
        else socket.create_connection((host, port), _TIMEOUT) as connection
    ):
        connection.settimeout(_TIMEOUT)
        if settings.uds:
            connection.connect(settings.uds)
        if settings.tls_cert:
            context = ssl.create_default_context()
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # it is this very machine
            connection = context.wrap_socket(connection)
        client = http.client.HTTPConnection(host, port)
        client.sock = connection
        client.request("GET", "/v2/health/ready", headers={"Connection": "close"})
        return client.getresponse().status


if __name__ == "__main__":
    main()
