"""The recipe of a data set: what all its samples have in common, kept as attributes of the store."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from metaspec_contract.detectors import CHANNELS
from metaspec_contract.process import Process
from metaspec_contract.structures import InvalidStructure, Structure, check_binary, pack
from metaspec_simulation.data import families
from metaspec_simulation.physics.farfield import harmonic_orders
from metaspec_simulation.physics.solver import DECAY

SCHEMA_VERSION = 2


@dataclass(frozen=True)
class Recipe:
    """What all samples of a data set have in common.

    Attributes:
        process: process of all samples.
        seed: seed of the random structures; sample i's depends on it and i alone.
        cells: the solver's grid cells per period.
        decay: share of the field's energy at which the solver ends a run.
        given: SHA-256 of the structures, if they are given and not random.
    """

    process: Process
    seed: int
    cells: int
    decay: float = DECAY
    given: str | None = None

    def family(self, sample: int) -> str:
        """Family of a random sample: the families take turns."""
        return families.FAMILIES[sample % len(families.FAMILIES)]

    def structure(self, sample: int) -> Structure:
        """Structure of a random sample, uint8 (128, 128)."""
        return families.random_structure(np.random.default_rng([self.seed, sample]), self.family(sample))

    def attributes(self) -> dict[str, Any]:
        """The recipe as attributes of the store."""
        return {
            "schema_version": SCHEMA_VERSION,
            "process": self.process.model_dump(mode="json"),
            "seed": self.seed,
            "given": self.given,
            "solver": {"name": "metaspec-fdtd", "cells": self.cells, "decay": self.decay},
            "channels": list(CHANNELS),
            "harmonic_orders": np.stack(harmonic_orders(), axis=1).tolist(),
        }


def given_recipe(process: Process, cells: int, given: ArrayLike) -> Recipe:
    """The recipe of a data set of given structures, binary (N, 128, 128).

    Raises:
        InvalidStructure: there are none, another shape, or values other than 0 and 1.
    """
    structures = check_binary(given)
    if not len(structures):
        raise InvalidStructure("structures must be at least one, got none")
    return Recipe(process, seed=0, cells=cells, given=hashlib.sha256(pack(structures).tobytes()).hexdigest())
