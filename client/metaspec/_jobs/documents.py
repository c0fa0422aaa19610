"""Jobs as JSON, ranked."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from metaspec._cli.runs import ranked_by
from metaspec._jobs.curve import Curve
from metaspec._jobs.figures import Figures, compared, figures
from metaspec._jobs.jobs import Job, Jobs, UnknownJob
from metaspec._jobs.runner import queued
from metaspec_contract.files import stamp
from metaspec_contract.run_folder import LOG, REPORT, SETTINGS, VERIFY

Document = dict[str, Any]

_RECENT = 0.25  # seconds that a list is shared for
_SHARE = 0.1  # of the time that lists may take at most


class Documents:
    """The jobs of a folder as JSON. What was read of a file is kept until the file changes.

    Args:
        jobs: the jobs.
    """

    def __init__(self, jobs: Jobs) -> None:
        self._jobs = jobs
        self._curves: dict[str, Curve] = {}
        self._figures: dict[str, tuple[Any, Figures | str]] = {}
        self._settled: dict[str, tuple[Any, Document]] = {}
        self._recent: list[Document] = []
        self._until = 0.0

    def recent(self) -> list[Document]:
        """As `all`, but up to a moment old: the same list for all who follow the jobs, and not to be changed."""
        began = time.monotonic()
        if began >= self._until:
            self._recent = self.all()
            self._until = began + max(_RECENT, (time.monotonic() - began) / _SHARE)
        return self._recent

    def forget(self, name: str | None = None) -> None:
        """Make the next `recent` as new as `all`.

        Args:
            name: job of which nothing that was read is to be used again.
        """
        self._until = 0.0
        if name is not None:
            self._curves.pop(name, None)
            self._figures.pop(name, None)
            self._settled.pop(name, None)

    def all(self) -> list[Document]:
        """All jobs: those with the same objective beside each other, best first; then those without a value, as queued.

        `rank` counts among the jobs with the same `ranked_by`: values of different objectives cannot be compared.
        """
        jobs = self._jobs.all()
        known = self._curves.keys() | self._figures.keys() | self._settled.keys()
        for gone in known - {job.name for job in jobs}:
            self.forget(gone)
        waiting = [job.name for job in sorted(jobs, key=queued) if job.state == "waiting"]
        documents = [self._document(job, waiting) for job in sorted(jobs, key=queued)]
        valued = [one for one in documents if one["objective"] is not None and one["ranked_by"] is not None]
        valued.sort(key=lambda one: (one["ranked_by"], -one["objective"]))
        before = None
        for document in valued:
            same = before is not None and before["ranked_by"] == document["ranked_by"]
            document["rank"] = before["rank"] + 1 if same and before is not None else 1
            before = document
        return valued + [one for one in documents if one["rank"] is None]

    def one(self, name: str, *, recent: bool = False) -> Document:
        """A job.

        Args:
            name: its name.
            recent: whether it may be a moment old; see `recent`.

        Raises:
            UnknownJob: there is none.
        """
        for document in self.recent() if recent else self.all():
            if document["name"] == name:
                return document
        raise UnknownJob(f"there is no job {name!r:.60}")

    def found(self, job: Job) -> Figures:
        """The figures of a finished job.

        Raises:
            ValueError: its report is damaged.
        """
        if isinstance(found := self._found(job), str):
            raise ValueError(found)
        return found

    def _document(self, job: Job, waiting: list[str]) -> Document:
        if not job.finished or job.process is not None:
            return self._read(job, waiting)
        now = (job.record, *_stamps(job.folder))
        known = self._settled.get(job.name)
        if known is None or known[0] != now:
            known = self._settled[job.name] = (now, self._read(job, waiting))
            del self._curves[job.name]  # all of its steps
        return dict(known[1])

    def _read(self, job: Job, waiting: list[str]) -> Document:
        curve = self._curves.setdefault(job.name, Curve(job.folder))
        curve.update()
        record, found = job.record, self._found(job) if job.finished else None
        figures = found if isinstance(found, Figures) else None
        message = found if isinstance(found, str) else job.damage or (record.failed if record else None)
        logged = [LOG] if (job.folder / LOG).exists() else []
        value = figures.objective if figures else curve.last.get("best")
        return {
            "name": job.name,
            "state": job.state,
            "message": message or None,
            "queue": waiting.index(job.name) + 1 if job.name in waiting else None,
            "rank": None,
            "ranked_by": figures.ranked_by if figures else None if value is None else _words(job),
            "objective": value,
            "verified": figures is not None and figures.verified,
            "min_efficiency": figures.min_efficiency if figures else None,
            "cells": figures.cells if figures else None,
            "step": curve.last.get("step", 0),
            "steps": curve.last.get("steps"),
            "command": record.command if record else None,
            "settings": record.settings if record else None,
            "created": record.created.isoformat() if record else None,
            "curve": curve.points(),
            "studio": figures.link if figures else None,
            "files": (["report", "designs.npy", "best.gds"] if figures else []) + logged,
        }

    def _found(self, job: Job) -> Figures | str:
        """Figures of a finished job; what is wrong where its report is damaged."""
        now = _stamps(job.folder)
        known = self._figures.get(job.name)
        if known is None or known[0] != now:
            try:
                found: Figures | str = figures(job.folder)
            except ValueError as error:
                found = str(error)
            known = self._figures[job.name] = (now, found)
        return known[1]


def _stamps(folder: Path) -> list[tuple[int, int, int] | None]:
    """What tells whether a run's report or its verification have changed."""
    found: list[tuple[int, int, int] | None] = []
    for name in (REPORT, VERIFY):
        try:
            found.append(stamp(folder / name))
        except FileNotFoundError:
            found.append(None)
    return found


def _words(job: Job) -> str | None:
    """What a run that goes on is ranked by, in words, from its settings; None where they cannot be read."""
    try:
        settings = json.loads((job.folder / SETTINGS).read_text(encoding="utf-8"))
        words = ranked_by(settings["objective"], settings.get("robust_delta", 0.0), settings.get("spread_penalty", 0.0))
        return compared(words, settings.get("conditions", {}), settings.get("free", {}))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
