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

PROCESS = Process(wavelength_step_nm=50)


@pytest.fixture
def data_set(tmp_path: Path) -> Path:
    """Two samples of nothing."""
    path = tmp_path / "data"
    attributes = {
        "schema_version": 2,
        "process": PROCESS.model_dump(mode="json"),
        "channels": list(CHANNELS),
        "solver": {"name": "metaspec-fdtd", "cells": 24},
    }
    group = create_store(path, PROCESS, attributes, 2, harmonics=True)
    group["complete"][:] = np.ones(2, np.uint8)
    return path


def attributes(path: Path) -> Any:
    return zarr.open_group(path, mode="r+").attrs


def test_what_is_consistent_is_read(data_set: Path) -> None:
    assert load(data_set).process == PROCESS


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
