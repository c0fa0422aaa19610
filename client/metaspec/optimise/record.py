"""What is known of a run: its history, the best binary structure of each row, and how it is kept."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Self

import numpy as np

from metaspec._spectra import Spectra
from metaspec._transport.protocol import ModelInfo
from metaspec.optimise.base import Array


@dataclass(frozen=True)
class Progress:
    """Where a run stands, for a callback.

    Attributes:
        step: steps done.
        steps: steps in all.
        beta: of the last step.
        value: of the objective in the last step, (M,).
        best: value of the best binary structure of each row so far, (M,).
        structure: that structure, uint8 (M, y, x).
    """

    step: int
    steps: int
    beta: float
    value: Array
    best: Array
    structure: Array


@dataclass(frozen=True)
class History:
    """What happened in each step.

    Attributes:
        beta: steepness of the projection, (steps,); infinite where structures were binary.
        value: of the objective, (steps, M).
        checked: steps in which the thresholded structures were evaluated, (checks,).
        binary_value: what they were worth, (checks, M).
    """

    beta: Array
    value: Array
    checked: Array
    binary_value: Array


@dataclass(frozen=True)
class Result:
    """The best binary structure of each row of the batch, best first.

    Attributes:
        structure: uint8 (M, y, x), 1 is solid.
        value: of the objective, (M,).
        spectra: predicted for `structure`.
        latent: float32 (M, y, x), which `structure` was thresholded from.
        row: of the batch that each comes from: the number of the start, (M,).
        found: the step in which it was found, (M,).
        history: of the run.
        trajectory: thresholded structures visited on the way, uint8 (checks * M, y, x), in order.
        structures_evaluated: structures that the server has predicted.
        server_calls: calls of the server.
        wall_s: seconds spent, interruptions not counted.
    """

    structure: Array
    value: Array
    spectra: Spectra
    latent: Array
    row: Array
    found: Array
    history: History
    trajectory: Array
    structures_evaluated: int
    server_calls: int
    wall_s: float


@dataclass
class Record:
    """A run so far, as arrays of fixed shapes, so that a checkpoint is these arrays.

    Attributes:
        value: of the objective, (steps, M). binary_value: of the thresholded structures, (checks, M).
        bits: of these structures, packed, uint8 (checks, M, bytes).
        best: binary value of each row, (M,). found: in which step. structure, latent, spectra: of it.
        version: of the model that predicted them, ().
    """

    value: Array
    binary_value: Array
    bits: Array
    best: Array
    found: Array
    structure: Array
    latent: Array
    spectra: Array
    version: Array

    @classmethod
    def empty(cls, steps: int, checks: int, shape: tuple[int, ...], info: ModelInfo) -> Self:
        """The record of a run that has not begun.

        Args:
            steps: of the run.
            checks: evaluations of thresholded structures.
            shape: of the latents, (M, y, x).
            info: of the model.
        """
        rows = shape[0]
        return cls(
            value=np.full((steps, rows), np.nan),
            binary_value=np.full((checks, rows), np.nan),
            bits=np.zeros((checks, rows, -(-shape[1] * shape[2] // 8)), np.uint8),
            best=np.full(rows, -np.inf),
            found=np.zeros(rows, np.int64),
            structure=np.zeros(shape, np.uint8),
            latent=np.zeros(shape, np.float32),
            spectra=np.zeros((rows, *info.spectra_shape), np.float32),
            version=np.array(info.version, "U64"),
        )

    def check(self, step: int, number: int, latent: Array, structure: Array, value: Array, spectra: Spectra) -> None:
        """Note what thresholded structures are worth, and keep those that are better than their row's best.

        Values of different versions of the model are not compared: a new one begins with the structures at hand.
        """
        if spectra.version != self.version:
            self.version[...] = spectra.version
            self.best[:] = -np.inf
        self.binary_value[number] = value
        self.bits[number] = np.packbits(structure.reshape(len(structure), -1), axis=1)
        better = value > self.best
        self.best[better], self.found[better] = value[better], step
        self.structure[better], self.latent[better] = structure[better], latent[better]
        self.spectra[better] = spectra.values[better]

    def arrays(self) -> dict[str, Array]:
        """What a checkpoint keeps."""
        return {f"record.{field.name}": getattr(self, field.name) for field in fields(self)}

    def restore(self, arrays: dict[str, Array]) -> None:
        """Take over what a checkpoint kept."""
        for name in self.arrays():
            getattr(self, name.removeprefix("record."))[...] = arrays[name]
