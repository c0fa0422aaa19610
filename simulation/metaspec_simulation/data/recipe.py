"""The recipe of a data set: what all its samples have in common, kept as attributes of the store."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from metaspec_contract.detectors import CHANNELS
from metaspec_contract.process import Process
from metaspec_contract.structures import InvalidStructure, check_structures, pack
from metaspec_simulation.data import families
from metaspec_simulation.data.labels import order_numbers
from metaspec_simulation.data.levels import as_levels, is_grey
from metaspec_simulation.physics.farfield import harmonic_orders
from metaspec_simulation.physics.run import DECAY, LONGEST

SCHEMA_VERSION = 3

ENERGY_BOUND = 5e-3
"""Energy error, rms over wavelengths, above which a sample is flagged."""


@dataclass(frozen=True)
class Recipe:
    """What all samples of a data set have in common.

    Attributes:
        process: process of all samples.
        seed: seed of the random structures; sample i's depends on it and i alone.
        cells: the solver's grid cells per period.
        decay: share of the field's energy at which the solver ends a run.
        longest: time at which it ends a run in any case, um / c.
        given: SHA-256 of the structures, if they are given and not random.
        families: families of the random structures, which take turns.
        orders: whether the samples have the orders under the layer, too.
        energy_bound: energy error, rms over wavelengths, above which a sample is flagged.
    """

    process: Process
    seed: int
    cells: int
    decay: float = DECAY
    longest: float = LONGEST
    given: str | None = None
    families: tuple[str, ...] = families.MIXTURE
    orders: bool = False
    energy_bound: float = ENERGY_BOUND

    def family(self, sample: int) -> str:
        """Family of a random sample."""
        return self.families[sample % len(self.families)]

    def structure(self, sample: int) -> NDArray[Any]:
        """Structure of a random sample, (y, x): binary, uint8, or a density in multiples of 1/255, float32."""
        rng = np.random.default_rng([self.seed, sample])
        return families.random_structure(rng, self.family(sample), self.process.pixels)

    def attributes(self) -> dict[str, Any]:
        """The recipe as attributes of the store."""
        return {
            "schema_version": SCHEMA_VERSION,
            "process": self.process.model_dump(mode="json"),
            "seed": self.seed,
            "given": self.given,
            "families": None if self.given else list(self.families),
            "solver": {"name": "metaspec-fdtd", "cells": self.cells, "decay": self.decay, "longest": self.longest},
            "energy_bound": self.energy_bound,
            "channels": list(CHANNELS),
            "harmonic_orders": np.stack(harmonic_orders(), axis=1).tolist(),
            "orders": np.stack(order_numbers(self.process), axis=1).tolist() if self.orders else None,
        }


def given_recipe(
    process: Process, cells: int, given: ArrayLike, orders: bool = False, longest: float = LONGEST
) -> Recipe:
    """The recipe of a data set of given structures.

    Args:
        process: process of all samples.
        cells: the solver's grid cells per period.
        given: structures or densities, (N, y, x).
        orders: whether the samples have the orders under the layer, too.
        longest: time at which the solver ends a run in any case, um / c.

    Raises:
        InvalidStructure: there are none, another shape, or values outside [0, 1].
    """
    levels = given_levels(given, process)
    if not len(levels):
        raise InvalidStructure("structures must be at least one, got none")
    content = levels if is_grey(levels).any() else pack(levels)
    digest = hashlib.sha256(content.tobytes()).hexdigest()
    return Recipe(process, seed=0, cells=cells, longest=longest, given=digest, orders=orders)


def given_levels(given: ArrayLike, process: Process, name: str = "structures") -> NDArray[np.uint8]:
    """Structures or densities (N, y, x) of a process as levels, uint8; densities are rounded to multiples of 1/255.

    Raises:
        InvalidStructure: another shape, or values outside [0, 1].
    """
    return as_levels(check_structures(given, process.structure_shape, name)[:, 0])
