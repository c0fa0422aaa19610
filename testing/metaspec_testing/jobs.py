"""`metaspec jobs` as a user starts it: a process of its own on a free port."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from metaspec._run_lock import holder
from metaspec_testing.servers import REQUEST_TIMEOUT

_PATIENCE = 240.0  # seconds for what a loaded machine does late


@dataclass
class RunningJobs:
    """A service that answers.

    Attributes:
        url: its address, without a slash at the end.
        process: its process.
        folder: its folder.
        client: client of its address.
    """

    url: str
    process: subprocess.Popen[str]
    folder: Path
    client: httpx.Client

    def make(self, **settings: Any) -> dict[str, Any]:
        """Make a job; settings that are not given are few steps of one start."""
        answer = self.client.post("/jobs", json={"steps": 20, "starts": 1, "radius_nm": 120, **settings})
        assert answer.status_code == 201, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def show(self, name: str) -> dict[str, Any]:
        """A job, as the service answers."""
        answer = self.client.get(f"/jobs/{name}")
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def until(self, name: str, *states: str) -> dict[str, Any]:
        """Wait until a job is in one of some states."""
        deadline = time.monotonic() + _PATIENCE
        while (found := self.show(name))["state"] not in states:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{name} is not {' or '.join(states)}: {found}")
            time.sleep(0.05)
        return found

    def until_step(self, name: str, step: int) -> dict[str, Any]:
        """Wait until a job has made some steps."""
        deadline = time.monotonic() + _PATIENCE
        while (found := self.show(name))["step"] < step:
            if time.monotonic() > deadline or found["state"] in ("finished", "failed"):
                raise TimeoutError(f"{name} has not made {step} steps: {found}")
            time.sleep(0.02)
        return found

    def events(self, name: str, last: str | None = None) -> Iterator[tuple[str, dict[str, Any], str | None]]:
        """Events of a job until the service ends them: their names, data and numbers.

        Args:
            name: its name.
            last: number of the last event that was seen.
        """
        headers = {} if last is None else {"Last-Event-ID": last}
        with self.client.stream("GET", f"/jobs/{name}/events", headers=headers, timeout=_PATIENCE) as answer:
            assert answer.headers["content-type"].startswith("text/event-stream"), answer.read()
            fields: dict[str, str] = {}
            for line in answer.iter_lines():
                if line:
                    key, _, value = line.partition(": ")
                    fields[key] = value
                elif "event" in fields:
                    yield fields["event"], json.loads(fields["data"]), fields.get("id")
                    fields = {}

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send it a signal, wait until it has ended, and return its status."""
        self.process.send_signal(number)
        return self.process.wait(_PATIENCE)


@contextmanager
def running_jobs(folder: Path, *options: object, headers: dict[str, str] | None = None) -> Iterator[RunningJobs]:
    """Run `metaspec jobs` on a free port until the block ends; then no process of its jobs is left.

    Args:
        folder: its folder.
        *options: further options of the command.
        headers: headers of the client.

    Raises:
        RuntimeError: it ended. The message holds what it printed.
    """
    command = [sys.executable, "-m", "metaspec", "jobs", "--folder", str(folder), "--port", "0", *map(str, options)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("METASPEC_")}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    ) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            match = re.search(r"MetaSpec jobs at (\S+)/ in", line)
            if match is None:
                raise RuntimeError(f"the service ended: {line}{process.stdout.read()}")
            timeout = httpx.Timeout(REQUEST_TIMEOUT)
            with httpx.Client(base_url=match[1], timeout=timeout, verify=False, headers=headers) as client:
                yield RunningJobs(match[1], process, folder, client)
        finally:
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(60)
                finally:
                    process.kill()
            for run in folder.iterdir() if folder.is_dir() else ():
                if number := holder(run):  # of a service that was killed, and not started again
                    os.kill(number, signal.SIGKILL)
