"""Croissant metadata of data sets, read by the library of the format."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from metaspec_contract.process import Process
from metaspec_simulation.croissant import FILE
from metaspec_simulation.data.store import PER_SAMPLE
from metaspec_simulation.dataset import Recipe, check, load, open_dataset, read_dataset
from metaspec_testing.data_sets import fill, in_older_layout

GIVEN = (
    "--license",
    "CC-BY-4.0",
    "--url",
    "https://example.org/data",
    "--creator",
    "A group",
    "--published",
    "2026-01-31",
)
COUNT = 70  # two chunks


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "tiny"
    fill(open_dataset(folder, Recipe(Process(), seed=0, cells=24), COUNT))
    return folder


@pytest.fixture
def data(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made, tmp_path / "tiny")


@pytest.mark.parametrize("older", [False, True])
def test_the_library_of_the_format_reads_it(data: Path, command: Callable[..., Any], older: bool) -> None:
    croissant = pytest.importorskip("mlcroissant")
    if older:
        in_older_layout(data)
    outcome = command("croissant", data, *GIVEN)
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.startswith(f"Wrote {data / FILE}: 70 metasurface unit cells (Si3N4 on SiO2, period 2 um, ")
    assert "with 24 grid cells per period" in outcome.out

    found = croissant.Dataset(data / FILE)
    metadata = found.metadata
    assert not metadata.ctx.issues.errors
    assert not metadata.ctx.issues.warnings
    assert metadata.conforms_to == ["http://mlcommons.org/croissant/1.1"]
    assert (metadata.name, metadata.version, metadata.url) == ("tiny", "1.0.0", "https://example.org/data")
    assert metadata.license == ["https://spdx.org/licenses/CC-BY-4.0.html"]
    assert [creator.name for creator in metadata.creators] == ["A group"]
    assert str(metadata.date_published).startswith("2026-01-31")

    samples, wavelengths = metadata.record_sets
    group = read_dataset(data)
    for field in samples.fields:
        array = group[field.name]
        assert field.data_type == array.dtype
        assert (field.array_shape_tuple or ()) == array.shape[1:]
    assert {field.name for field in samples.fields} == {name for name in PER_SAMPLE if name in group} - {"complete"}
    values = [record["wavelengths/nm"] for record in found.records("wavelengths")]
    np.testing.assert_array_equal(values, Process().wavelengths_nm)
    assert wavelengths.fields[0].description == "wavelength in nm"


def test_the_distribution_is_the_files_of_the_store(data: Path, command: Callable[..., Any]) -> None:
    before = {path.relative_to(data) for path in data.rglob("*") if path.is_file()}
    assert command("croissant", data, *GIVEN).code == 0
    document = json.loads((data / FILE).read_text())
    metadata, store = document["distribution"]
    assert metadata["sha256"] == hashlib.sha256((data / metadata["contentUrl"]).read_bytes()).hexdigest()
    described = {path for one in store["includes"] for path in data.glob(one.replace("**", "**/*")) if path.is_file()}
    assert {path.relative_to(data) for path in described} | {Path("zarr.json")} == before
    assert len(load(data)) == COUNT, "the data set is as it was"
    assert check(data)[:2] == (COUNT, COUNT)


def test_descriptions_say_how_values_are_scaled(data: Path, command: Callable[..., Any]) -> None:
    assert command("croissant", data, *GIVEN).code == 0
    (samples, _) = json.loads((data / FILE).read_text())["recordSet"]
    described = {field["name"]: field["description"] for field in samples["field"]}
    group = read_dataset(data)
    for name in ("structure", "spectra", "harmonics"):
        assert f"stored value times {group[name].attrs['scale_factor']:.9g}" in described[name]
    assert described["structure"].endswith("; axes y, x")
    assert described["split"] == "split: number of one of train validation test, from 0"
    assert described["duration"] == "simulated time, in um/c"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--url", "data"), "--url must be an address, such as https://example.org/data, got 'data'"),
        (
            ("--license", "my licence"),
            "--license must be an SPDX identifier, such as CC-BY-4.0, or a URL, got 'my licence'",
        ),
        (("--dataset-version", "two"), "--dataset-version must be three numbers, such as 1.0.0, got 'two'"),
        (("--published", "soon"), "soon"),
    ],
)
def test_bad_arguments(data: Path, refusal: Callable[..., str], options: tuple[str, ...], message: str) -> None:
    assert message in refusal("croissant", data, *GIVEN, *options)
    assert not (data / FILE).exists()


def test_what_is_no_finished_data_set(data: Path, tmp_path: Path, refusal: Callable[..., str]) -> None:
    (tmp_path / "other").mkdir()
    assert "is not a MetaSpec data set" in refusal("croissant", tmp_path / "other", *GIVEN)
    read_dataset(data, mode="r+")["complete"][3] = 0
    assert refusal("croissant", data, *GIVEN).endswith("tiny is not finished: 1 of its samples are missing")
    assert "--license" in refusal("croissant", data, "--url", "https://example.org", "--creator", "x")
