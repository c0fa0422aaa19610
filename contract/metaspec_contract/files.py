"""Atomic writes of whole files, and reading `.npy` files without pickle."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tokenize import TokenError
from typing import Any, Literal
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

_DAMAGED = (ValueError, EOFError, OSError, BadZipFile, MemoryError, OverflowError, SyntaxError, TokenError, TypeError)
"""Errors of NumPy for files that are not arrays; the last five for damaged headers."""

_STEM = 40  # characters of a file's name that the temporary name repeats, which keeps it below the system's limit


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write to a temporary path that replaces `path` at the end, durably: readers see the old file or the whole new one.

    The temporary name is unique, so concurrent writers of one path do not disturb each other: the last one wins. If the block
    raises, `path` is unchanged and the temporary file is removed. The permissions of a replaced file stay. A symbolic link is
    followed; a device or a pipe, such as /dev/stdout, is written directly.

    Args:
        path: path of the file; the temporary path has the same suffix.

    Raises:
        OSError: the file cannot be written; the error names `path`.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):
        yield path
        return
    target = Path(os.path.realpath(path)) if path.is_symlink() else path
    unique = f"{os.getpid()}-{uuid.uuid4().hex[:12]}"
    partial = target.with_name(f".{target.stem.lstrip('.')[:_STEM]}-{unique}{target.suffix}")
    try:
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        with suppress(FileNotFoundError):
            shutil.copymode(target, partial)
        partial.replace(target)
        sync_folder(target.parent)
    except OSError as error:
        if str(error.filename) == str(partial):  # a name that the caller does not know
            error.filename = str(path)
            del error.filename2
        raise
    finally:
        with suppress(OSError):
            partial.unlink()


def write_bytes(path: Path, content: bytes | memoryview) -> None:
    """Write a file, replacing an existing one."""
    with replacing(path) as partial:
        partial.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, replacing an existing one."""
    write_bytes(path, text.encode())


def write_json(path: Path, document: Any) -> None:
    """Write a document as indented JSON, replacing an existing file.

    Raises:
        ValueError: a number is not finite, which JSON cannot represent.
    """
    write_text(path, json.dumps(document, indent=2, allow_nan=False) + "\n")


def write_array(path: Path, array: NDArray[Any]) -> None:
    """Write an array as `.npy`, replacing an existing file."""
    content = io.BytesIO()  # given a file, numpy turns Ctrl-C into a TypeError
    np.save(content, array, allow_pickle=False)
    write_bytes(path, content.getbuffer())


def sync_folder(path: Path) -> None:
    """Flush a folder's entries to disk, so that renames in it survive a power cut, where the system supports it."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except PermissionError:  # Windows
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # not supported by this file system
            raise
    finally:
        os.close(descriptor)


def stamp(path: Path) -> tuple[int, int, int]:
    """Inode, size and modification time of a file: they tell whether it has been replaced or written to.

    Raises:
        OSError: there is no such file.
    """
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


def read_array(path: Path, mmap_mode: Literal["r"] | None = None) -> NDArray[Any]:
    """Read the array of a `.npy` file.

    Args:
        path: path of the file.
        mmap_mode: "r" to map the file instead of reading it.

    Raises:
        ValueError: the file is missing, damaged, or does not hold one array of numbers.
    """
    try:
        array = np.load(path, mmap_mode=mmap_mode, allow_pickle=False)
    except FileNotFoundError:
        raise ValueError(f"{path} is missing") from None
    except _DAMAGED as error:
        raise ValueError(f"{path} is not a .npy file of plain numbers: {error}") from None
    if not isinstance(array, np.ndarray):
        array.close()
        raise ValueError(f"{path} is not a .npy file of plain numbers: it is an archive of several arrays")
    if array.dtype.kind not in "biufc":
        raise ValueError(f"{path} is not a .npy file of plain numbers: its dtype is {array.dtype}")
    return array
