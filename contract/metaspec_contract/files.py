"""Files that appear whole or not at all, and arrays of others read without ever unpickling."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path beside `path` that takes its place at the end, durably: readers see the old file or the whole new one.

    The temporary name is its own for each process and thread, so two that write one path do not disturb each other: the last
    one stays. If the block raises, `path` is as it was and nothing is left beside it.

    Args:
        path: path of the file. Its ending is kept, for writers that choose a format by it.
    """
    partial = path.with_name(f".{path.stem}.{os.getpid()}-{uuid.uuid4().hex[:12]}{path.suffix}")
    try:
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        partial.replace(path)
        sync_folder(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a whole file, in place of the one that is there."""
    with replacing(path) as partial:
        partial.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Write a whole text file in UTF-8, in place of the one that is there."""
    write_bytes(path, text.encode())


def write_json(path: Path, document: Any) -> None:
    """Write a document as indented JSON, in place of the file that is there."""
    write_text(path, json.dumps(document, indent=2) + "\n")


def write_array(path: Path, array: NDArray[Any]) -> None:
    """Write an array as `.npy`, in place of the file that is there."""
    with replacing(path) as partial, partial.open("wb") as file:
        np.save(file, array, allow_pickle=False)


def sync_folder(path: Path) -> None:
    """Make renames in a folder survive a power cut, where the system lets folders be opened."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except PermissionError:  # Windows
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_array(path: Path, mmap_mode: Literal["r"] | None = None) -> NDArray[Any]:
    """The array of a `.npy` file.

    Args:
        path: path of the file.
        mmap_mode: "r" maps the file instead of reading it.

    Raises:
        ValueError: the file is missing, damaged, or holds anything but one array of plain numbers.
    """
    try:
        array = np.load(path, mmap_mode=mmap_mode, allow_pickle=False)
    except FileNotFoundError:
        raise ValueError(f"{path} is missing") from None
    except (ValueError, EOFError, OSError, BadZipFile) as error:
        raise ValueError(f"{path} is not a .npy file of plain numbers: {error}") from None
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{path} is not a .npy file of plain numbers: it is an archive of several arrays")
    return array
