"""Data sets: append simulated samples to one, read it, and state its provenance.

`metaspec_simulation.data.store` describes the layout on disk, `data.append` how it is written, `data.samples` how it is read.
"""

from __future__ import annotations

from metaspec_simulation.data.append import (
    add_structures,
    mend,
    missing_shards,
    open_dataset,
    write_samples,
    write_together,
)
from metaspec_simulation.data.labels import HARMONIC_STEP, STEP
from metaspec_simulation.data.recipe import Recipe, given_recipe
from metaspec_simulation.data.samples import ROW_FIELDS, Samples, check, count_distinct, load, provenance, summary
from metaspec_simulation.data.store import Group, read_dataset

__all__ = [
    "HARMONIC_STEP",
    "ROW_FIELDS",
    "STEP",
    "Group",
    "Recipe",
    "Samples",
    "add_structures",
    "check",
    "count_distinct",
    "given_recipe",
    "load",
    "mend",
    "missing_shards",
    "open_dataset",
    "provenance",
    "read_dataset",
    "summary",
    "write_samples",
    "write_together",
]
