"""Samples of a data set in memory: read block by block, and drawn from a split."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from metaspec_contract.detectors import CHANNELS
from metaspec_contract.process import Process
from metaspec_contract.structures import pack
from metaspec_simulation.data.labels import STEP
from metaspec_simulation.data.store import PER_SAMPLE, Group, create_store, whole_chunks
from metaspec_simulation.dataset import check, load
from metaspec_simulation.physics.farfield import harmonic_orders

PROCESS = Process(wavelength_step_nm=50)
COUNT, SHARD = 19, 4  # the last shard is not full


@pytest.fixture
def group(tmp_path: Path) -> Group:
    """A data set of noise, whose second shard is unfinished as a whole and others in part; a few structures are grey."""
    attributes = {
        "schema_version": 3,
        "process": PROCESS.model_dump(mode="json"),
        "channels": list(CHANNELS),
        "harmonic_orders": np.stack(harmonic_orders(), axis=1).tolist(),
        "solver": {"name": "metaspec-fdtd", "cells": 24},
    }
    group = create_store(tmp_path / "data", PROCESS, attributes, COUNT, harmonics=True, orders=True, shard=SHARD)
    rng = np.random.default_rng(0)
    with whole_chunks():
        for name in PER_SAMPLE:
            group[name][:] = rng.integers(0, 3, group[name].shape).astype(group[name].dtype)
        group["structure"][:] = 255 * rng.integers(0, 2, group["structure"].shape, np.uint8)
        for row in (2, 9, 18):
            group["structure"][row] = rng.integers(0, 256, (128, 128), np.uint8)
        group["flag"][:] = rng.integers(0, 2, COUNT)
        group["complete"][:] = [1, 0, 1, 1, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 0, 1, 1, 1]
    return group


def test_reading_in_blocks(group: Group, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metaspec_simulation.data.samples._BLOCK", SHARD)
    samples = load(tmp_path / "data", orders=True)
    done = np.flatnonzero(group["complete"][:])
    levels = group["structure"][:][done]
    np.testing.assert_array_equal(samples.packed, pack(levels > 127))
    np.testing.assert_array_equal(samples.spectra, group["spectra"][:][done].astype(np.float32) * np.float32(STEP))
    for name in ("harmonics", "orders", "flag", "energy_error"):
        np.testing.assert_array_equal(getattr(samples, name), group[name][:][done])
    np.testing.assert_array_equal(np.flatnonzero(samples.grey >= 0), np.searchsorted(done, [2, 9, 18]))
    np.testing.assert_array_equal(samples.densities, group["structure"][:][[2, 9, 18]])
    everything = hashlib.sha256(group["structure"][:].tobytes()).hexdigest()
    assert check(tmp_path / "data") == (len(done), COUNT, everything)


def test_a_part_of_a_split(group: Group, tmp_path: Path) -> None:
    samples = load(tmp_path / "data")
    whole = samples.rows("train")
    np.testing.assert_array_equal(whole, np.flatnonzero(samples.split == "train"))
    np.testing.assert_array_equal(samples.rows("train", len(whole)), whole)
    part = samples.rows("train", 2)
    assert len(part) == 2
    assert set(part.tolist()) < set(whole.tolist())
    np.testing.assert_array_equal(samples.rows("train", 2), part)  # the same ones every time
    np.testing.assert_array_equal(samples.of("train", 2).packed, samples.packed[part])
