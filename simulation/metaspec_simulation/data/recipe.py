"""The recipe of a data set: all that its samples have in common, kept as the attributes of the store."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metaspec_contract.detectors import CHANNELS
from metaspec_contract.process import Process
from metaspec_contract.structures import PIXELS, Structure, pack
from metaspec_simulation.data import families
from metaspec_simulation.physics.farfield import harmonic_orders

SCHEMA_VERSION = 2


@dataclass(frozen=True)
class Recipe:
    """All that the samples of a data set have in common.

    Attributes:
        process: the device.
        seed: from which, and a sample's number, its structure follows.
        cells: the solver's grid cells per period.
        tail: the solver's recording time after the pulse, um / c.
        given: SHA-256 of the structures, if they are given and do not follow from the seed.
    """

    process: Process
    seed: int
    cells: int
    tail: float = 25.0
    given: str | None = None

    def family(self, sample: int) -> str:
        """Family of a sample: they take turns."""
        return families.FAMILIES[sample % len(families.FAMILIES)]

    def structure(self, sample: int) -> Structure:
        """Structure of a sample, uint8 (128, 128)."""
        return families.random_structure(np.random.default_rng([self.seed, sample]), self.family(sample))

    def attributes(self) -> dict[str, Any]:
        """The recipe as the attributes of the store."""
        return {
            "schema_version": SCHEMA_VERSION,
            "process": self.process.model_dump(mode="json"),
            "seed": self.seed,
            "given": self.given,
            "solver": {"name": "metaspec-fdtd", "cells": self.cells, "tail": self.tail},
            "channels": list(CHANNELS),
            "harmonic_orders": np.stack(harmonic_orders(), axis=1).tolist(),
        }


def given_recipe(process: Process, cells: int, given: NDArray[np.generic]) -> Recipe:
    """The recipe of a data set of given structures, uint8 (N, 128, 128).

    Raises:
        ValueError: another shape, or values other than 0 and 1.
    """
    if given.ndim != 3 or given.shape[1:] != (PIXELS, PIXELS) or not len(given):
        raise ValueError(f"structures must have shape (N, {PIXELS}, {PIXELS}), got {given.shape}")
    if not np.isin(given, (0, 1)).all():
        raise ValueError("structures must be binary, 0 for void and 1 for solid")
    digest = hashlib.sha256(pack(given.astype(np.uint8)).tobytes()).hexdigest()
    return Recipe(process, seed=0, cells=cells, given=digest)
