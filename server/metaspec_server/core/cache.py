"""Exact repeats: optimisers ask for the same binary structure again and again, and need it computed once.

Rows are recognised by their bytes: the packed bits of the structure, and whatever else the model takes. No hash stands for
them, so that no two different structures are ever taken for the same.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from cachetools import LRUCache

from metaspec_server.core.tensors import Rows, count

KEY = "\0key"
"""Name of an array of keys, dtype object, that travels with rows: rows with equal keys have equal results."""

_OVERHEAD = 600  # bytes of Python objects for an entry, roughly


@dataclass(frozen=True)
class _Entry:
    row: Rows  # without the batch axis
    nbytes: int


def keys(rows: Rows) -> list[bytes]:
    """The bytes of each row, of all its tensors."""
    blobs = [np.ascontiguousarray(array).reshape(len(array), -1).view(np.uint8) for array in rows.values()]
    flat = blobs[0] if len(blobs) == 1 else np.concatenate(blobs, axis=1)
    data, size = flat.tobytes(), flat.shape[1]
    return [data[start : start + size] for start in range(0, len(data), size)]


class ResultCache:
    """The results of rows seen last, of all models, within a number of bytes. Safe to use from several threads.

    Args:
        max_bytes: size of keys and results together; what was used least recently makes room.
    """

    def __init__(self, max_bytes: int) -> None:
        self._entries: LRUCache[tuple[int, bytes], _Entry] = LRUCache(max_bytes, getsizeof=lambda e: e.nbytes)
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        """Bytes in use."""
        return int(self._entries.currsize)

    def get(self, model: int, row_keys: Sequence[bytes]) -> list[Rows | None]:
        """For each row its results by a model, without the batch axis, or None."""
        with self._lock:
            entries = [self._entries.get((model, key)) for key in row_keys]
        return [None if entry is None else entry.row for entry in entries]

    def put(self, model: int, row_keys: Sequence[bytes], results: Rows) -> None:
        """Keep a model's results of rows. What alone would fill the cache is not kept."""
        nbytes = sum(array[0].nbytes for array in results.values()) + _OVERHEAD
        for n, key in enumerate(row_keys):
            entry = _Entry({name: array[n].copy() for name, array in results.items()}, nbytes + len(key))
            if entry.nbytes <= self._entries.maxsize:
                with self._lock:
                    self._entries[model, key] = entry


def computing_repeats_once(run: Callable[[Sequence[Rows]], Rows]) -> Callable[[Sequence[Rows]], Rows]:
    """An engine's `run` that computes rows of equal keys once.

    Pieces without keys are computed as they are.
    """

    def run_distinct(pieces: Sequence[Rows]) -> Rows:
        if not any(KEY in piece for piece in pieces):
            return run(pieces)
        places: dict[object, int] = {}
        where: list[int] = []
        distinct: list[Rows] = []
        for piece in pieces:
            size = count(piece)
            piece_keys = piece[KEY] if KEY in piece else [object() for _ in range(size)]
            new = []
            for n, key in enumerate(piece_keys):
                if key not in places:
                    places[key] = len(places)
                    new.append(n)
                where.append(places[key])
            tensors = {name: array for name, array in piece.items() if name != KEY}
            if len(new) == size:
                distinct.append(tensors)
            elif new:
                distinct.append({name: array[new] for name, array in tensors.items()})
        results = run(distinct)
        if len(places) == len(where):
            return results
        return {name: array[where] for name, array in results.items()}

    return run_distinct
