"""Data sets that are not simulated: filled with zeros, or turned into the layout of an earlier version."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import zarr

from metaspec_contract.structures import pack
from metaspec_simulation.data.store import PER_SAMPLE, Group, whole_chunks


def fill(group: Group) -> None:
    """Finish all samples of a new data set, without simulating them: everything is 0."""
    with whole_chunks():
        for name in PER_SAMPLE:
            if name in group:
                group[name][:] = np.full(group[name].shape, name == "complete", group[name].dtype)


def in_older_layout(path: Path) -> None:
    """Turn a data set of binary structures into one of schema version 2, with the harmonics up to the seventh."""
    group: Any = zarr.open_group(path, use_consolidated=False)
    structures, harmonics = group["structure"][:], group["harmonics"][:]
    orders = np.array(group.attrs["harmonic_orders"])
    kept = np.flatnonzero(np.abs(orders).max(axis=1) <= 7)
    both = np.concatenate([kept, len(orders) - 1 + kept[1:]])
    for name, values, inner in (
        ("structure", pack(structures), ("byte",)),
        ("harmonics", harmonics[:, both], ("harmonic", "harmonic_wavelength")),
    ):
        attributes = dict(group[name].attrs)
        del group[name]
        with whole_chunks():
            array = group.create_array(
                name,
                data=values,
                chunks=(64, *values.shape[1:]),
                compressors=zarr.codecs.BloscCodec(cname="zstd", clevel=9, shuffle="shuffle"),
                dimension_names=("sample", *inner),
            )
        array.attrs.update({} if name == "structure" else attributes)
    for name in ("remaining", "duration", "flag"):
        del group[name]
    group.attrs["harmonic_orders"] = orders[kept].tolist()
    group.attrs["schema_version"] = 2
    group.attrs["solver"] = {"name": "metaspec-fdtd", "cells": group.attrs["solver"]["cells"], "tail": 25.0}
