"""One process at a time writes a data set."""

from __future__ import annotations

import errno
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_UNSUPPORTED = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK, errno.EINVAL)  # by the file system


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
    descriptor = _acquire(file, path)
    try:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, json.dumps({"process": os.getpid(), "host": socket.gethostname()}).encode())
        yield
    finally:
        with suppress(OSError):
            file.unlink()  # while it is held: who opens it later opens a new one
        os.close(descriptor)


def _acquire(file: Path, path: Path) -> int:
    """Open and lock the file; returns its descriptor."""
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if fcntl is not None:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.stat(file).st_ino == os.fstat(descriptor).st_ino:
                return descriptor
        except BlockingIOError:
            holder = _holder(descriptor)
            os.close(descriptor)
            raise ValueError(f"{path} is being written by {holder}: wait until it has ended, or stop it") from None
        except FileNotFoundError:  # the last holder has just removed it
            pass
        except OSError as error:
            if error.errno in _UNSUPPORTED:
                return descriptor
            os.close(descriptor)
            raise
        os.close(descriptor)


def _holder(descriptor: int) -> str:
    try:
        holder = json.loads(os.read(descriptor, 1000))
        return f"process {holder['process']} on {holder['host']}"
    except (ValueError, KeyError, TypeError):
        return "another process"
