"""Server-sent events: the progress of one job, and the changes of all."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from metaspec._jobs.documents import Document, Documents
from metaspec._jobs.jobs import Job, UnknownJob
from metaspec._run_progress import lines

_EVERY = 0.25  # seconds between two looks
_QUIET = 15.0  # seconds without an event after which a comment shows that the connection is alive
_RETRY = "retry: 1000\n\n"  # milliseconds after which a browser connects again


async def of_job(documents: Documents, job: Job, start: int, stopping: Callable[[], bool]) -> AsyncIterator[str]:
    """Events of a job: `progress` for each step, `state` when its state changes, and, last of all, `end` when it has ended.

    The number of a `progress` is its place in the run's `progress.jsonl`: `Last-Event-ID` goes on after it.

    Args:
        documents: all jobs as JSON.
        job: the job.
        start: place from which on the progress is sent.
        stopping: function that says whether the service ends.
    """
    yield _RETRY
    state, last = "", time.monotonic()
    while not stopping():
        try:
            document = documents.one(job.name, recent=True)  # before its lines: what has ended has written all of them
        except UnknownJob:
            yield _event("end", {"name": job.name, "state": "removed"})
            return
        if document["state"] != state:
            state, last = document["state"], time.monotonic()
            yield _event("state", _brief(document))
        for line in lines(job.folder, start):
            start, last = line.end, time.monotonic()
            yield f"id: {line.end}\nevent: progress\ndata: {line.text}\n\n"
        if has_ended(document):
            yield _event("end", _brief(document))
            return
        if time.monotonic() - last > _QUIET:
            last = time.monotonic()
            yield ":\n\n"
        await asyncio.sleep(_EVERY)


async def of_all(documents: Documents, stopping: Callable[[], bool]) -> AsyncIterator[str]:
    """Events of the list: `jobs` has those that are new or have changed, and the names of all in their order.

    Args:
        documents: all jobs as JSON.
        stopping: function that says whether the service ends.
    """
    yield _RETRY
    known: dict[str, Document] = {}
    seen: list[Document] | None = None
    last = time.monotonic()
    while not stopping():
        if (recent := documents.recent()) is not seen:
            now = {document["name"]: document for document in recent}
            changed = [one for name, one in now.items() if known.get(name) != one]
            if changed or seen is None or list(now) != list(known):
                last = time.monotonic()
                yield _event("jobs", {"order": list(now), "jobs": changed})
            seen, known = recent, now
        if time.monotonic() - last > _QUIET:
            last = time.monotonic()
            yield ":\n\n"
        await asyncio.sleep(_EVERY)


def has_ended(document: Document) -> bool:
    """Whether a job has ended for good, or until somebody resumes it after a failure."""
    return document["state"] in ("finished", "failed")


def _brief(document: Document) -> Document:
    """A job without its curve."""
    return {name: value for name, value in document.items() if name != "curve"}


def _event(name: str, data: Any) -> str:
    return f"event: {name}\ndata: {json.dumps(data)}\n\n"
