"""Locks of files: one process at a time holds one. The system releases it when its holder ends, in whatever way."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

UNSUPPORTED = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)
"""Error numbers of file systems without locks."""

_PAUSE = 0.02  # seconds between two tries
_NOTE = 1000  # bytes of a note that are read


@contextmanager
def exclusive(
    file: Path,
    note: bytes,
    refusal: Callable[[bytes], Exception],
    patience: float = 0.0,
    unsupported: Collection[int] = UNSUPPORTED,
) -> Iterator[None]:
    """Hold a lock file until the block ends, when it is removed. Where there are no locks, nothing is locked.

    Args:
        file: the file, in an existing folder; it need not exist.
        note: what is written into it, for those who find it held.
        refusal: makes the error of who finds it held, from the note of its holder, which is empty for a moment.
        patience: seconds to try again.
        unsupported: error numbers of file systems without locks.

    Raises:
        Exception: what `refusal` makes: another process holds it.
    """
    descriptor = _acquired(file, refusal, time.monotonic() + patience, unsupported)
    try:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, note)
        yield
    finally:
        with suppress(OSError):
            file.unlink()  # while it is held: who opened it before finds that it is gone
        os.close(descriptor)


def _acquired(file: Path, refusal: Callable[[bytes], Exception], deadline: float, unsupported: Collection[int]) -> int:
    """Descriptor of the file, which this process holds."""
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if fcntl is not None:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.stat(file), os.fstat(descriptor)):
                return descriptor
        except BlockingIOError:
            if time.monotonic() > deadline:
                note = os.read(descriptor, _NOTE)
                os.close(descriptor)
                raise refusal(note) from None
            time.sleep(_PAUSE)
        except FileNotFoundError:  # the last holder has just removed it
            pass
        except OSError as error:
            if error.errno in unsupported:
                return descriptor
            os.close(descriptor)
            raise
        os.close(descriptor)
