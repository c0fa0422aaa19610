"""Starts the processes of jobs, as many as may run at once, and pauses them. One step of it looks at the folders and acts."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress

from metaspec._jobs.jobs import Job, Jobs, UnknownJob
from metaspec._jobs.settings import WrongSetting, arguments
from metaspec_contract.run_folder import LOG

_EVERY = 0.25  # seconds between two steps
_SHARE = 0.1  # of the time that steps may take at most, in a folder with very many jobs
_GRACE = 30.0  # seconds for processes to save what they have, when the service ends
_TAIL = 4096  # bytes of a log that are searched for its last line


class Runner:
    """Runs the jobs of a folder.

    Args:
        jobs: the jobs.
        workers: number of jobs that run at once.
        environment: environment of their processes.
    """

    def __init__(self, jobs: Jobs, workers: int, environment: Mapping[str, str]) -> None:
        self._jobs, self._workers, self._environment = jobs, workers, dict(environment)
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._told: set[int] = set()  # processes that were sent SIGTERM
        self._awake, self._closed = asyncio.Event(), False

    def wake(self) -> None:
        """Make the next step at once."""
        self._awake.set()

    async def run(self) -> None:
        """Make a step whenever something may have changed, until the runner is closed."""
        while not self._closed:
            began = time.monotonic()
            try:
                self.step()
            except (OSError, UnknownJob) as error:  # a full disk, or a folder that somebody removes: not for ever
                print(f"metaspec: {error}", file=sys.stderr, flush=True)
            self._awake.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._awake.wait(), max(_EVERY, (time.monotonic() - began) / _SHARE))

    def step(self) -> None:
        """Note which processes have ended, pause what is to be paused, start what waits."""
        self._collect()
        jobs = self._jobs.all()
        active = [job for job in jobs if job.process is not None and job.record is not None]
        for job in active:
            if job.state == "pausing":
                self._terminate(job)
        waiting = sorted((job for job in jobs if job.state == "waiting"), key=queued)
        for job in waiting[: max(0, self._workers - len(active))]:
            self._start(job)

    async def close(self) -> int:
        """Pause all jobs until the next start of the service, and wait until their processes have saved what they have.

        Returns:
            Number of processes that still run.
        """
        self._closed = True
        deadline = time.monotonic() + _GRACE
        while True:
            self._collect()
            active = [job for job in self._jobs.all() if job.process is not None and job.record is not None]
            if not active or time.monotonic() > deadline:
                return len(active)
            for job in active:
                self._terminate(job)
            await asyncio.sleep(_EVERY / 5)

    def _start(self, job: Job) -> None:
        assert job.record is not None
        try:
            given = arguments(job.record.command, job.record.settings, self._jobs.working)
            with (job.folder / LOG).open("ab") as log:
                process = subprocess.Popen(
                    [sys.executable, "-P", "-m", "metaspec", job.record.command, f"--out={job.folder}", *given],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd=self._jobs.working.path,
                    env=self._environment,
                    start_new_session=True,  # Ctrl-C in the terminal of the service is for the service alone
                )
        except (WrongSetting, OSError) as error:
            self._jobs.change(job, failed=str(error))
            return
        self._processes[job.name] = process
        self._jobs.children[job.name] = process.pid

    def _terminate(self, job: Job) -> None:
        """Ask the process of a job to save what it has and to end; once."""
        if not job.process or job.process in self._told:
            return
        self._told.add(job.process)
        with suppress(ProcessLookupError):
            os.kill(job.process, signal.SIGTERM)

    def _collect(self) -> None:
        """Forget processes that have ended; of one that failed, keep why."""
        for name, process in list(self._processes.items()):
            status = process.poll()
            if status is None:
                continue
            del self._processes[name], self._jobs.children[name]
            told = process.pid in self._told
            self._told.discard(process.pid)
            try:
                job = self._jobs.get(name)
            except UnknownJob:  # somebody has removed its folder
                continue
            if told or job.finished or job.process is not None:  # the latter: it refused, as another one works there
                continue
            ended = f"killed by signal {-status}" if status < 0 else f"ended with status {status}"
            line = _last_line(job)
            self._jobs.change(job, failed=line if status > 0 and line else f"{ended}{': ' * bool(line)}{line}")


def queued(job: Job) -> tuple[float, str]:
    """Order of jobs that wait."""
    return (job.record.queued.timestamp() if job.record else 0.0), job.name


def _last_line(job: Job) -> str:
    """Last line that the process of a job has printed; "" if there is none."""
    try:
        with (job.folder / LOG).open("rb") as log:
            log.seek(max(0, log.seek(0, 2) - _TAIL))
            text = log.read().decode(errors="replace")
    except FileNotFoundError:
        return ""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")
