"""Results of repeated structures: looked up from earlier requests, and computed once within a micro-batch.

Optimisers ask for the same binary structure again and again. Rows are compared by their bytes (the packed bits of the structure
and the other inputs of the model), not by a hash, so that two different structures are never confused.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from cachetools import LRUCache

from metaspec_server.core.tensors import Piece, Rows, count

__all__ = ["ResultCache", "computing_repeats_once", "keys"]

_OVERHEAD = 600  # bytes of Python objects in an entry, roughly


@dataclass(frozen=True)
class _Entry:
    row: Rows  # without the batch axis
    nbytes: int


def keys(rows: Rows) -> list[bytes]:
    """Key of each row: the bytes of all its tensors, in their order."""
    blobs = [np.ascontiguousarray(array).reshape(len(array), -1).view(np.uint8) for array in rows.values()]
    flat = blobs[0] if len(blobs) == 1 else np.concatenate(blobs, axis=1)
    data, size = flat.tobytes(), flat.shape[1]
    return [data[start : start + size] for start in range(0, len(data), size)]


class ResultCache:
    """Results of the rows seen last, for all models, within a number of bytes. Thread-safe.

    Args:
        max_bytes: size of keys and results together in bytes; the least recently used make room.
    """

    def __init__(self, max_bytes: int) -> None:
        self._entries: LRUCache[tuple[int, bytes], _Entry] = LRUCache(max_bytes, getsizeof=lambda e: e.nbytes)
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        """Bytes in use."""
        return int(self._entries.currsize)

    def get(self, model: int, row_keys: Sequence[bytes]) -> list[Rows | None]:
        """Results of each row, without the batch axis, or None where they are not cached.

        Args:
            model: number of the loaded model.
            row_keys: keys of the rows.
        """
        with self._lock:
            entries = [self._entries.get((model, key)) for key in row_keys]
        return [None if entry is None else entry.row for entry in entries]

    def put(self, model: int, row_keys: Sequence[bytes], results: Rows) -> None:
        """Store copies of results. What is larger than the cache is not stored.

        Args:
            model: number of the loaded model.
            row_keys: keys of the rows.
            results: outputs of the model, one row for each key.
        """
        nbytes = sum(array[0].nbytes for array in results.values()) + _OVERHEAD
        for n, key in enumerate(row_keys):
            entry = _Entry({name: array[n].copy() for name, array in results.items()}, nbytes + len(key))
            if entry.nbytes <= self._entries.maxsize:
                with self._lock:
                    self._entries[model, key] = entry


def computing_repeats_once(run: Callable[[Sequence[Rows]], Rows]) -> Callable[[Sequence[Piece]], Rows]:
    """Make an engine's `run` compute rows with equal keys once. Pieces without keys are computed as they are."""

    def run_distinct(pieces: Sequence[Piece]) -> Rows:
        if all(piece.keys is None for piece in pieces):
            return run([piece.rows for piece in pieces])
        places: dict[object, int] = {}
        where: list[int] = []
        distinct: list[Rows] = []
        for piece in pieces:
            size = count(piece.rows)
            row_keys: Sequence[object] = [object() for _ in range(size)] if piece.keys is None else piece.keys
            new = []
            for n, key in enumerate(row_keys):
                if key not in places:
                    places[key] = len(places)
                    new.append(n)
                where.append(places[key])
            if len(new) == size:
                distinct.append(piece.rows)
            elif new:
                distinct.append({name: array[new] for name, array in piece.rows.items()})
        results = run(distinct)
        if len(places) == len(where):
            return results
        return {name: array[where] for name, array in results.items()}

    return run_distinct
