"""What an engine is: the protocol that each implements, its description, and the trial before a model is served."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from metaspec_contract.model import ModelMetadata, TensorSpec, check_answers, probes
from metaspec_server.core.tensors import Rows

__all__ = ["Description", "Engine", "try_out"]

_KINDS = 3  # of structures among the probes: empty, full, random


@dataclass(frozen=True)
class Description:
    """A loaded model.

    Attributes:
        metadata: metadata of the model, which its tensors fit.
        inputs: input tensors.
        outputs: output tensors.
        platform: library or server that computes it, for people.
    """

    metadata: ModelMetadata
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    platform: str


class Engine(Protocol):
    """Computes micro-batches of one model, one at a time.

    Attributes:
        about: description of the model.
        max_batch: largest number of rows in a micro-batch.
        input_seconds: time that the last micro-batch took to be copied into the inputs, in seconds.
    """

    about: Description
    max_batch: int
    input_seconds: float

    def run(self, pieces: Sequence[Rows]) -> Rows:
        """Outputs of a micro-batch that comes in pieces, in the same order. The next call may overwrite them."""
        ...

    def stop(self) -> None:
        """Make `run` end with an exception, from another thread. The engine is of no use afterwards."""
        ...


def try_out(metadata: ModelMetadata, size: int, run: Callable[[Rows], Rows]) -> None:
    """Run a model on empty, full and random structures, and hold its answers against its metadata.

    Args:
        metadata: metadata of the model.
        size: largest number of rows in a call; every kind of structure is tried even if it is 1.
        run: function that computes up to `size` rows.

    Raises:
        ModelMismatch: an output is missing, of another shape, or not finite.
    """
    rows = max(size, _KINDS)
    inputs = probes(metadata, rows)
    parts: dict[str, list[np.ndarray]] = {}
    for start in range(0, rows, size):
        results = run({name: array[start : start + size] for name, array in inputs.items()})
        for name, array in results.items():
            parts.setdefault(name, []).append(np.array(array))
    check_answers(metadata, {name: np.concatenate(arrays) for name, arrays in parts.items()}, rows)
