"""The lock of a run folder: one process at a time works in it. It ends with its process, however that ends."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from metaspec_contract import locks
from metaspec_contract.run_folder import LOCK

_PATIENCE = 1.0  # seconds to try: whoever asks for the holder holds it for a moment


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder until the block ends. Windows and some file systems have no such lock: nothing is locked there.

    Args:
        folder: existing folder; its `.lock` holds the number of the process, and is removed in the end.

    Raises:
        ValueError: another process holds it.
    """
    if sys.platform == "win32":
        yield
        return

    def refusal(note: bytes) -> ValueError:
        return ValueError(f"process {_number(note)} works in {folder}: wait until it ends, or use another folder")

    with locks.exclusive(folder / LOCK, str(os.getpid()).encode(), refusal, _PATIENCE):
        yield


def holder(folder: Path) -> int | None:
    """Number of the process that holds the lock of a folder, None if there is none.

    Raises:
        OSError: the file cannot be read.
    """
    if sys.platform == "win32":
        return None
    import fcntl

    try:
        descriptor = os.open(folder / LOCK, os.O_RDONLY)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _number(os.pread(descriptor, 20, 0))
    except OSError as error:
        if error.errno not in locks.UNSUPPORTED:
            raise
        return None
    else:
        return None
    finally:
        os.close(descriptor)


def _number(note: bytes) -> int:
    """Number of a process in a lock file; 0 before it has written it."""
    return int(note or 0)
