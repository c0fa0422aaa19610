"""The jobs of a folder: run folders with a `job.json`. Their states follow from what is on disk, and from living processes."""

from __future__ import annotations

import os
import re
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from metaspec._jobs.record import JobRecord, read_record, write_record
from metaspec._jobs.settings import Command
from metaspec._run_lock import holder, locked
from metaspec._working_folder import SHOWN, WorkingFolder
from metaspec_contract.files import stamp, sync_folder
from metaspec_contract.run_folder import JOB, REPORT

State = Literal["waiting", "running", "pausing", "paused", "finished", "failed"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_NEW, _GONE = ".new-", ".gone-"  # folders that are being made or removed


class UnknownJob(LookupError):
    """There is no job of that name."""


class Conflict(ValueError):
    """A job cannot do that in its state."""


@dataclass(frozen=True)
class Job:
    """A run folder, as it is at the moment.

    Attributes:
        name: its name.
        folder: its path.
        record: what it is to do; None for a run that was not started by the service.
        process: number of the process that works in it; None for none.
        finished: whether its designs are complete.
        damage: what is wrong with its record.
    """

    name: str
    folder: Path
    record: JobRecord | None
    process: int | None
    finished: bool
    damage: str = ""

    @property
    def state(self) -> State:
        """Its state."""
        paused = self.record is not None and self.record.paused
        if self.process is not None:
            return "pausing" if paused else "running"
        if self.finished:
            return "finished"
        if self.record is None or self.record.failed is not None:
            return "failed"
        return "paused" if paused else "waiting"


class Jobs:
    """The jobs of a working folder. Nothing but the folder knows of them, so that a restart loses nothing.

    Args:
        working: the folder.

    Attributes:
        children: numbers of processes that were started, by job: they work in its folder before they lock it.
    """

    def __init__(self, working: WorkingFolder) -> None:
        self.working = working
        self.children: dict[str, int] = {}
        self._records: dict[Path, tuple[tuple[int, int, int], JobRecord]] = {}
        for left in working.path.iterdir():
            if left.name.startswith((_NEW, _GONE)):  # by a service that was killed
                shutil.rmtree(left, ignore_errors=True)

    def all(self) -> list[Job]:
        """All jobs, and runs that were started otherwise and are running or finished, by name."""
        with os.scandir(self.working.path) as entries:
            names = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
        jobs = [self._look(name) for name in sorted(names) if _NAME.fullmatch(name)]
        return [job for job in jobs if job is not None]

    def get(self, name: str) -> Job:
        """The job of a name.

        Raises:
            UnknownJob: there is none.
        """
        job = self._look(name) if _NAME.fullmatch(name) else None
        if job is None or job.folder.is_symlink():
            raise UnknownJob(f"there is no job {name!r:.{SHOWN}}")
        return job

    def create(self, name: str | None, command: Command, settings: Mapping[str, Any]) -> Job:
        """Make a job, which waits for its turn.

        Args:
            name: its name, which is that of its folder; by default one is made.
            command: the command.
            settings: its settings, which have been checked.

        Raises:
            ValueError: the name is not one.
            Conflict: it is taken.
        """
        if name is None:
            stem, number = settings.get("objective") or command, 1
            while (self.working.path / f"{stem}-{number}").exists():
                number += 1
            name = f"{stem}-{number}"
        check_name(name)
        now = datetime.now(UTC)
        record = JobRecord(command=command, settings=dict(settings), created=now, queued=now)
        new, folder = self.working.path / f"{_NEW}{uuid.uuid4().hex}", self.working.path / name
        new.mkdir()
        write_record(new, record)
        try:
            new.rename(folder)  # replaces an empty folder only
        except OSError:
            shutil.rmtree(new)
            raise Conflict(f"name: expected a new one, got {name!r}, which exists in the folder") from None
        sync_folder(self.working.path)
        return self.get(name)

    def pause(self, name: str) -> Job:
        """Pause a job. One that runs ends after it has saved what it has.

        Raises:
            UnknownJob: there is none.
            Conflict: it has ended, or was not started by the service.
        """
        job = self.get(name)
        if job.state in ("finished", "failed"):
            raise Conflict(f"{name} cannot be paused: it has {job.state}")
        return self.change(job, paused=True)

    def resume(self, name: str) -> Job:
        """Put a job that is paused or has failed at the end of the queue.

        Raises:
            UnknownJob: there is none.
            Conflict: it has finished, or was not started by the service.
        """
        job = self.get(name)
        if job.state in ("waiting", "running"):
            return job
        if job.state == "finished":
            raise Conflict(f"{name} cannot be resumed: it has finished")
        return self.change(job, paused=False, failed=None, queued=datetime.now(UTC))

    def change(self, job: Job, **changes: Any) -> Job:
        """Write a job's record with other values.

        Raises:
            Conflict: it has none.
        """
        if job.record is None:
            raise Conflict(f"{job.name} was not started here" if not job.damage else job.damage)
        record = job.record.model_copy(update=changes)
        if record != job.record:
            write_record(job.folder, record)
        return self.get(job.name)

    def remove(self, name: str) -> Path:
        """Remove a job that does not run from the list.

        Returns:
            Where its folder is now, for the caller to delete.

        Raises:
            UnknownJob: there is none.
            Conflict: it runs, or was not started by the service.
        """
        job = self.get(name)
        if job.process is not None:
            raise Conflict(f"{name} cannot be removed while it is {job.state}: pause it first")
        if job.record is None and not job.damage:
            raise Conflict(f"{name} was not started here: remove its folder yourself")
        gone = self.working.path / f"{_GONE}{uuid.uuid4().hex}"
        with locked(job.folder):
            job.folder.rename(gone)
        return gone

    def _look(self, name: str) -> Job | None:
        folder, record, damage = self.working.path / name, None, ""
        try:
            record = self._record(folder)
        except (FileNotFoundError, NotADirectoryError):
            pass
        except (ValueError, OSError) as error:
            damage = str(error)
        process = holder(folder)
        if process is None:
            process = self.children.get(name)
        finished = (folder / REPORT).is_file()
        if record is None and not damage and process is None and not finished:
            return None
        return Job(name, folder, record, process, finished, damage)

    def _record(self, folder: Path) -> JobRecord:
        """The record of a run folder, read again where it has changed."""
        now = stamp(folder / JOB)
        known = self._records.get(folder)
        if known is None or known[0] != now:
            known = self._records[folder] = (now, read_record(folder))
        return known[1]


def check_name(name: object) -> None:
    """Refuse what cannot be the name of a job.

    Raises:
        ValueError: it is not a text, has other characters, or is too long.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(
            f"name: expected 1 to 64 letters, digits, - and _, a letter or digit first, got {name!r:.{SHOWN}}"
        )
