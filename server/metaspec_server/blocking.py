"""Blocking calls that may never return, such as those of a mount that is gone: in threads that nobody has to wait for."""

from __future__ import annotations

import errno
import os
import stat
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar, TypeVarTuple

__all__ = ["PATIENCE", "in_thread", "leave_if_hanging", "read_file", "require_regular", "within"]

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

PATIENCE = 30.0
"""Seconds for a call that a working disk answers in milliseconds."""

_SLOWEST = 2**20  # bytes per second
_MOMENT = 0.5  # seconds
_THREAD = "blocking call"  # name of the threads
_given_up: dict[tuple[Callable[..., Any], tuple[Any, ...]], Future[Any]] = {}

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def in_thread(function: Callable[[*Ts], T], *args: *Ts) -> Future[T]:
    """Call a function in a thread of its own, which does not keep the process alive as those of `asyncio.to_thread` do."""
    future: Future[T] = Future()
    future.set_running_or_notify_cancel()  # whoever waits for it may be cancelled, the call cannot be

    def call() -> None:
        try:
            result = function(*args)
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(result)

    threading.Thread(target=call, name=_THREAD, daemon=True).start()
    return future


def within(seconds: float, function: Callable[[*Ts], T], *args: *Ts) -> T:
    """Result of a call, if it comes in time. While one that was given up goes on, the same call fails at once.

    Args:
        seconds: time for the call in seconds.
        function: function that is called.
        *args: its arguments.

    Raises:
        TimeoutError: there was no result in time.
    """
    if (earlier := _given_up.pop((function, args), None)) is not None and not earlier.done():
        _given_up[function, args] = earlier
        raise _no_answer(seconds)
    future = in_thread(function, *args)
    try:
        return future.result(seconds)
    except TimeoutError:
        if future.done():  # just now, or the call itself has raised it
            return future.result()
        _given_up[function, args] = future
        raise _no_answer(seconds) from None


def leave_if_hanging(status: int) -> None:
    """End the process at once if a call goes on for longer than a moment: else it may use what Python takes down at its end.

    Args:
        status: exit status of the process.
    """
    deadline = time.monotonic() + _MOMENT
    for thread in threading.enumerate():
        if thread.name == _THREAD:
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)


def require_regular(status: os.stat_result) -> None:
    """Check that a file is none that may never end, nor be waited for.

    Raises:
        OSError: it is a folder, a pipe, a socket or a device.
    """
    if not stat.S_ISREG(status.st_mode):
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "another kind of file")
        raise OSError(errno.EINVAL, f"it is {kind}, expected a regular file")


def read_file(path: Path, most: int) -> bytes:
    """Content of a regular file.

    Args:
        path: path of the file.
        most: largest size in bytes.

    Raises:
        OSError: it cannot be read, does not answer, is larger, or is a pipe, a device or a folder.
    """
    size = within(PATIENCE, os.stat, path).st_size
    return within(PATIENCE + min(size, most) / _SLOWEST, _read, path, most)


def _read(path: Path, most: int) -> bytes:
    _check(path.stat(), most)  # even to open a device may have effects
    with open(path, "rb", opener=_open) as file:
        _check(os.fstat(file.fileno()), most)
        return file.read()


def _open(name: str, flags: int) -> int:
    """Open a file without waiting for the other end of a pipe. It makes no difference to a regular file."""
    return os.open(name, flags | getattr(os, "O_NONBLOCK", 0))


def _check(status: os.stat_result, most: int) -> None:
    require_regular(status)
    if status.st_size > most:
        raise OSError(errno.EFBIG, f"it has {status.st_size} bytes, expected at most {most}")


def _no_answer(seconds: float) -> TimeoutError:
    return TimeoutError(errno.ETIMEDOUT, f"no answer within {seconds:.3g} s")
