"""The files of deploy/, and the command lines in them."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"

LAST_ANSWERS = 5.0
"""Seconds that the server takes to send the last answers, after `--shutdown-timeout`."""


def value_of(flag: str, arguments: Sequence[str], default: str = "") -> str:
    """The value of a flag in a command line, written with or without an equals sign."""
    for place, argument in enumerate(arguments):
        if argument == flag:
            return arguments[place + 1]
        if argument.startswith(f"{flag}="):
            return argument.removeprefix(f"{flag}=")
    return default


def shutdown_seconds(arguments: Sequence[str]) -> float:
    """How long the server takes to shut down at most, by its command line."""
    delay, timeout = value_of("--shutdown-delay", arguments, "0"), value_of("--shutdown-timeout", arguments, "30")
    return float(delay) + float(timeout) + LAST_ANSWERS


@contextmanager
def listening_server(arguments: Sequence[str]) -> Iterator[httpx.Client]:
    """Run metaspec-serve until the block ends; yields a client as soon as it listens, though it may not be ready."""
    command = [sys.executable, "-m", "metaspec_server", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        match = re.search(r"listens at (http://\S+)", line)
        assert match, line + process.stdout.read()
        with httpx.Client(base_url=match[1], timeout=60) as client:
            yield client
    finally:
        process.kill()
        process.wait(60)


def wait_until_ready(client: httpx.Client, seconds: float = 120) -> None:
    """Wait for the models."""
    deadline = time.monotonic() + seconds
    while client.get("/v2/health/ready").status_code != 200:
        assert time.monotonic() < deadline, client.get("/v2/health/ready").text
        time.sleep(0.05)
