"""A real nginx on a free port, where it is installed."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NGINX = shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")
"""The program; None where it is not installed."""

_START_TIMEOUT = 30.0  # seconds

_CONFIGURATION = """
{user}
pid {folder}/nginx.pid;
error_log {folder}/error.log;
daemon off;
events {{}}
http {{
  access_log off;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
{http}
}}
"""


@contextmanager
def running_nginx(folder: Path, port: int, http: str) -> Iterator[None]:
    """Run nginx until the block ends.

    Args:
        folder: empty folder for its files.
        port: port that the configuration listens on.
        http: content of the configuration's block `http`.

    Raises:
        RuntimeError: it ended, or did not listen in time. The message holds its log.
    """
    assert NGINX is not None
    configuration = folder / "nginx.conf"
    user = "user root;" if os.geteuid() == 0 else ""  # otherwise it would give up the right to write to the folder
    configuration.write_text(_CONFIGURATION.format(folder=folder, http=http, user=user))
    command = [NGINX, "-p", str(folder), "-e", str(folder / "error.log"), "-c", str(configuration)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        deadline = time.monotonic() + _START_TIMEOUT
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    process.kill()
                    raise RuntimeError(f"nginx does not listen: {process.communicate()[0]}") from None
                time.sleep(0.02)
        yield
    finally:
        process.terminate()
        process.wait(30)
