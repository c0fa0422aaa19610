"""The lock of a run folder: one process at a time works in it. It ends with its process, however that ends."""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from metaspec_contract.run_folder import LOCK

_PATIENCE = 1.0  # seconds to try: whoever asks for the holder holds it for a moment
_PAUSE = 0.02  # seconds between two tries
_UNSUPPORTED = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP}  # of file systems without locks, where nothing is locked


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
    path = folder / LOCK
    descriptor = _acquired(path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # while it is held: who opened it before finds that it is gone
        os.close(descriptor)


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
        return int(os.pread(descriptor, 20, 0) or 0)  # 0: it has not yet written its number
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        return None
    else:
        return None
    finally:
        os.close(descriptor)


def _acquired(path: Path) -> int:
    """Descriptor of a lock file that this process holds."""
    import fcntl

    deadline = time.monotonic() + _PATIENCE
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is(descriptor, path):
                os.truncate(descriptor, 0)
                os.pwrite(descriptor, str(os.getpid()).encode(), 0)
                return descriptor
        except BlockingIOError:
            if time.monotonic() > deadline:
                os.close(descriptor)
                number = holder(path.parent)
                raise ValueError(
                    f"process {number} works in {path.parent}: wait until it ends, or use another folder"
                ) from None
            time.sleep(_PAUSE)
        except OSError as error:
            if error.errno in _UNSUPPORTED:
                return descriptor
            os.close(descriptor)
            raise
        os.close(descriptor)


def _is(descriptor: int, path: Path) -> bool:
    """Whether an open file is the one at a path: the holder before may have removed it."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
