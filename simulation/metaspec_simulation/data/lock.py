"""One process at a time writes a data set."""

from __future__ import annotations

import errno
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from metaspec_contract import locks

_UNSUPPORTED = (*locks.UNSUPPORTED, errno.EINVAL)  # by the file system


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold the lock of a data set. The system releases it when its holder ends, in whatever way.

    The lock is a file beside the folder, which exists before the folder does. It is for the process that hands out the work;
    the workers of its run, on this machine or on others, need none. Where the file system has no locks, nothing is locked.

    Args:
        path: folder of the data set.

    Raises:
        ValueError: another process holds it; the message names that process.
    """
    target = path.resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    file = target.with_name(f".{target.name}.lock")
    note = json.dumps({"process": os.getpid(), "host": socket.gethostname()}).encode()

    def refusal(held: bytes) -> ValueError:
        return ValueError(f"{path} is being written by {_holder(held)}: wait until it has ended, or stop it")

    with locks.exclusive(file, note, refusal, unsupported=_UNSUPPORTED):
        yield


def _holder(note: bytes) -> str:
    try:
        holder = json.loads(note)
        return f"process {holder['process']} on {holder['host']}"
    except (ValueError, KeyError, TypeError):
        return "another process"
