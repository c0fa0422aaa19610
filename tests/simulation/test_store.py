"""Data sets whose attributes and arrays contradict each other are refused by name before anything is trained on them."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from metaspec_contract.detectors import CHANNELS
from metaspec_contract.process import Process
from metaspec_simulation.data.store import create_store
from metaspec_simulation.dataset import load
from metaspec_simulation.physics.farfield import harmonic_orders
from metaspec_testing.data_sets import fill, in_older_layout

PROCESS = Process(wavelength_step_nm=50)


@pytest.fixture
def data_set(tmp_path: Path) -> Path:
    """Two samples of nothing."""
    path = tmp_path / "data"
    attributes = {
        "schema_version": 3,
        "process": PROCESS.model_dump(mode="json"),
        "channels": list(CHANNELS),
        "harmonic_orders": np.stack(harmonic_orders(), axis=1).tolist(),
        "solver": {"name": "metaspec-fdtd", "cells": 24},
    }
    fill(create_store(path, PROCESS, attributes, 2, harmonics=True))
    return path


def attributes(path: Path) -> Any:
    return zarr.open_group(path, mode="r+").attrs


def test_what_is_consistent_is_read(data_set: Path) -> None:
    assert load(data_set).process == PROCESS


def test_the_older_layout_is_read(data_set: Path) -> None:
    in_older_layout(data_set)
    samples = load(data_set)
    assert samples.harmonics.shape == (2, 81, 7)
    assert samples.harmonic_orders.shape == (2, 41)
    assert samples.packed.shape == (2, 2048)
    assert not samples.flag.any()


@pytest.mark.parametrize("file", ["zarr.json", "spectra/zarr.json", "wavelength/zarr.json"])
@pytest.mark.parametrize("content", [b"", b'{"zarr_format": 3, "node_'])
def test_metadata_that_a_power_cut_damaged(
    data_set: Path, refusal: Callable[..., str], file: str, content: bytes
) -> None:
    (data_set / file).write_bytes(content)
    assert f"{data_set / file} is empty or damaged" in refusal("check", data_set)
    assert f"{data_set / file} is empty or damaged" in refusal("--count", 2, "--out", data_set)


def test_a_line_for_each_damaged_file(data_set: Path, refusal: Callable[..., str]) -> None:
    (data_set / "spectra" / "c" / "0" / "0" / "0").unlink()
    (data_set / "flag" / "c" / "0").write_bytes(b"")
    message = f"{data_set / 'spectra/c/0/0/0'} and 1 other file of {data_set.name} are damaged or missing"
    with pytest.raises(ValueError, match=re.escape(message)):
        load(data_set)
    assert message in refusal("check", data_set)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"wavelength_min_nm": 450.0, "wavelength_max_nm": 750.0},
            "array wavelength has 7 wavelengths from 400 to 700 nm, but the process has 7 wavelengths from 450 to 750 nm",
        ),
        ({"wavelength_max_nm": 750.0}, "array wavelength has 7 wavelengths .*, but the process has 8 wavelengths"),
        ({"period_um": None}, r"process\.period_um: Input should be a valid number"),
    ],
)
def test_a_process_that_the_arrays_contradict(data_set: Path, change: dict[str, Any], message: str) -> None:
    attributes(data_set)["process"] = PROCESS.model_dump(mode="json") | change
    with pytest.raises(ValueError, match=rf"^\S*data: {message}"):
        load(data_set)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("channels", ["B", "G1", "G2", "R"], "channels must be R, G1, G2, B, got B, G1, G2, R"),
        ("channels", None, "channels: Input should be a valid tuple"),
        ("merged_greens", "perhaps", "merged_greens: Input should be a valid boolean, got 'perhaps'"),
        ("solver", "foo", "solver: Input should be a valid dictionary, got 'foo'"),
        ("solver", {"cells": "many"}, r"solver\.cells must be a positive whole number, got 'many'"),
    ],
)
def test_attributes_that_are_malformed(data_set: Path, name: str, value: Any, message: str) -> None:
    attributes(data_set)[name] = value
    with pytest.raises(ValueError, match=rf"^\S*data: {message}"):
        load(data_set)


@pytest.mark.parametrize("name", ["process", "channels", "solver", "made_with"])
def test_attributes_that_are_missing(data_set: Path, name: str) -> None:
    del attributes(data_set)[name]
    with pytest.raises(ValueError, match=f"data: {name}: Field required"):
        load(data_set)


@pytest.mark.parametrize("name", ["complete", "spectra", "wavelength", "harmonics", "harmonic_wavelength"])
def test_arrays_that_are_missing(data_set: Path, refusal: Callable[..., str], name: str) -> None:
    del zarr.open_group(data_set, mode="r+")[name]
    line = f"{data_set}: array {name} is missing"
    with pytest.raises(ValueError, match=f"^{re.escape(line)}$"):
        load(data_set)
    assert refusal("--count", 2, "--out", data_set) == f"metaspec-simulate: {line}"
