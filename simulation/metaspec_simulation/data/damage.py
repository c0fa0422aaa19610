"""Damaged files of a data set: those that a power cut left missing, empty or halved, or whose checksum is wrong."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metaspec_simulation.data.recipe import SCHEMA_VERSION
from metaspec_simulation.data.store import PER_SAMPLE, Group, chunk_file

_MAY_BE_ABSENT = ("family", "split")  # until schema version 3, files that would hold zeros only were not written


@dataclass(frozen=True)
class Damage:
    """One damaged file.

    Attributes:
        file: file of the data set.
        array: name of its array.
        start: first of its samples.
        stop: one past the last of them.
    """

    file: Path
    array: str
    start: int
    stop: int


def finished(group: Group) -> NDArray[np.bool_]:
    """Which samples are finished, (N,); none of those whose file of `complete` is damaged."""
    complete = group["complete"]
    done = np.zeros(complete.shape[0], bool)
    for _, start, stop in _shards(complete):
        rows = _rows(complete, start, stop)
        done[start:stop] = False if rows is None else rows != 0
    return done


def find_damage(path: Path, group: Group, decode: bool = True) -> list[Damage]:
    """Damaged files of finished samples.

    Args:
        path: folder of the data set.
        group: the opened data set.
        decode: whether to read all files; otherwise those of `complete` are read, and others only found missing or empty.
    """
    done, found = finished(group), []
    old = group.attrs["schema_version"] < SCHEMA_VERSION
    for name in PER_SAMPLE:
        if name not in group:
            continue
        array = group[name]
        for shard, start, stop in _shards(array):
            file = chunk_file(path, array, shard)
            if name != "complete" and not (
                done[start:stop].any() or (name == "structure" and group.attrs.get("given"))
            ):
                continue
            absent = not file.exists()
            if absent and (name == "complete" or (old and name in _MAY_BE_ABSENT)):
                continue
            read = decode or name == "complete"
            if absent or not file.stat().st_size or (read and _rows(array, start, stop) is None):
                found.append(Damage(file, name, start, stop))
    return found


def _shards(array: Any) -> list[tuple[int, int, int]]:
    """Number, first sample and one past the last one of each shard."""
    count, size = array.shape[0], array.chunks[0]
    return [(start // size, start, min(start + size, count)) for start in range(0, count, size)]


def _rows(array: Any, start: int, stop: int) -> NDArray[Any] | None:
    """Rows of an array, or None if they cannot be decoded."""
    try:
        rows: NDArray[Any] = array[start:stop]
    except (ValueError, RuntimeError):  # of the checksum, and of the decompression
        return None
    return rows
