"""`python -m metaspec_server.ops.health`: exit status 0 if the server of this container is ready, for Docker's health checks.

The address is that of the server's own flags and variables, and no proxy is asked. It imports next to nothing, because it runs
every few seconds.
"""

from __future__ import annotations

import argparse
import http.client
import os
import socket
import ssl
import sys
from pathlib import Path

__all__ = ["main"]

_TIMEOUT = 4.0  # seconds
_ANY = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # addresses that are listened on, but not called


def main() -> None:
    """Ask the server whether it is ready. The first argument is the number of its process; 1 by default."""
    process = sys.argv[1] if len(sys.argv) > 1 else "1"
    flags = Path(f"/proc/{process}/cmdline").read_text().split("\0")
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name, default in (("host", "127.0.0.1"), ("port", "8000"), ("uds", ""), ("tls-cert", "")):
        variable = f"METASPEC_{name.replace('-', '_').upper()}"
        parser.add_argument(f"--{name}", default=os.environ.get(variable, default))
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
