"""The real server on a real port, in a process of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class RunningServer:
    url: str
    process: subprocess.Popen[str]
    banner: str
    log: list[str]

    @property
    def address(self) -> str:
        return self.url.removeprefix("http://")


@contextmanager
def running_server(*arguments: str, timeout: float = 60) -> Iterator[RunningServer]:
    """Start `metaspec-serve` on a free port, wait until it says where it serves, end it afterwards."""
    command = [sys.executable, "-m", "metaspec_server.ops.cli", "--port", "0", *arguments]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("METASPEC_")}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, bufsize=1
    )
    watchdog = threading.Timer(timeout, process.kill)
    watchdog.start()
    try:
        banner = ""
        assert process.stdout is not None
        while (match := re.search(r"serves at (\S+)", banner)) is None:
            line = process.stdout.readline()
            if not line:
                raise RuntimeError(f"the server did not start within {timeout:g} s, or ended: {banner}")
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
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
