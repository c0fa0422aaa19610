"""The real server on a real port, in a process of its own."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

START_TIMEOUT = 240.0
"""Seconds for a server to start: a machine under load may take minutes to load and try the bundled models."""

REQUEST_TIMEOUT = 60.0
"""Seconds for an answer."""


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class RunningServer:
    """A server that answers.

    Attributes:
        url: its address, as a URL.
        process: its process.
        banner: what it printed before and when it started to serve, log included.
        log: lines that it has printed since.
    """

    url: str
    process: subprocess.Popen[str]
    banner: str
    log: list[str]

    @property
    def address(self) -> str:
        """Its address, as host:port."""
        return self.url.removeprefix("http://")

    @property
    def grpc_address(self) -> str:
        """Address of its port for gRPC, as host:port."""
        match = re.search(r"gRPC (\S+)\)", self.banner)
        assert match, f"started without --grpc-port: {self.banner}"
        return match[1]

    @property
    def peak_bytes(self) -> int:
        """Largest resident memory that its process has had, in bytes. Linux only."""
        return self._memory("VmHWM")

    @property
    def resident_bytes(self) -> int:
        """Resident memory of its process in bytes. Linux only."""
        return self._memory("VmRSS")

    def _memory(self, field: str) -> int:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith(field))

    def client(self, **options: Any) -> httpx.Client:
        """HTTP client of its address, with a timeout that a loaded machine keeps.

        It loads no certificates: plain HTTP needs none, and loading them takes longer than most answers.
        """
        return httpx.Client(**{"base_url": self.url, "timeout": REQUEST_TIMEOUT, "verify": False, **options})

    def get(self, path: str, **options: Any) -> httpx.Response:
        """Answer to a GET request on a connection of its own."""
        with self.client() as client:
            return client.get(path, **options)

    def post(self, path: str, **options: Any) -> httpx.Response:
        """Answer to a POST request on a connection of its own."""
        with self.client() as client:
            return client.post(path, **options)


@contextmanager
def running_server(
    *arguments: str,
    program: Sequence[str] = (sys.executable, "-m", "metaspec_server"),
    timeout: float = START_TIMEOUT,
    until: str = "serves",
) -> Iterator[RunningServer]:
    """Run `metaspec-serve` on a free port until the block ends.

    Args:
        *arguments: flags of the command.
        program: the command.
        timeout: time to start in seconds.
        until: what it has to do first: "serves" with all models loaded, or "listens".

    Raises:
        RuntimeError: it ended, at once, or it was not serving in time. The message holds what it printed.
    """
    command = [*program, "--port", "0", *arguments]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("METASPEC_")}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, bufsize=1
    )
    late = threading.Event()

    def give_up() -> None:
        late.set()
        process.kill()

    watchdog = threading.Timer(timeout, give_up)
    watchdog.daemon = True
    watchdog.start()
    try:
        banner = ""
        assert process.stdout is not None
        while (match := re.search(rf"{until} at (\S+)", banner)) is None:
            line = process.stdout.readline()
            if not line:
                reason = f"was not serving within {timeout:g} s" if late.is_set() else "ended"
                raise RuntimeError(f"the server {reason}: {banner}")
            banner += line
        watchdog.cancel()
        log: list[str] = []
        reader = threading.Thread(target=log.extend, args=[process.stdout], daemon=True)
        reader.start()  # a pipe that nobody reads fills up and blocks the server
        yield RunningServer(match[1], process, banner, log)
    finally:
        watchdog.cancel()
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
