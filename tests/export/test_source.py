"""What is exported comes from the checkpoint; the data are held against it, and the network, too."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from metaspec_contract.process import Process
from metaspec_contract.provenance import Provenance
from metaspec_export.build import Variants, build
from metaspec_export.source import MeanGreens, read_source
from metaspec_simulation.dataset import load, provenance
from metaspec_training.networks.field import DiffractionFieldNetConfig
from metaspec_training.networks.query import DiffractionNetConfig

MakeFile = Callable[..., Path]


def test_the_first_data_set_that_was_trained_on_is_the_default(
    checkpoint: Path, data: Path, trained_on: Provenance, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets" / data.name).symlink_to(data)
    monkeypatch.chdir(tmp_path)
    source = read_source(checkpoint)
    assert source.provenance == trained_on
    assert not source.from_data
    (tmp_path / "datasets" / data.name).unlink()
    with pytest.raises(ValueError, match=f"no data set at datasets/{data.name}.*say by --data where"):
        read_source(checkpoint)


def test_data_elsewhere_only_measure(
    checkpoint: Path, data: Path, trained_on: Provenance, make_data: MakeFile, tmp_path: Path
) -> None:
    other = make_data(tmp_path / "elsewhere", seed=1)
    source = read_source(checkpoint, [other, data])
    assert source.provenance == trained_on
    assert source.evaluated_on == "elsewhere"
    np.testing.assert_array_equal(source.samples.of("test").structures, load(other).of("test").structures)


def test_data_of_another_device_are_refused(checkpoint: Path, data: Path, make_data: MakeFile, tmp_path: Path) -> None:
    other = make_data(tmp_path / "other", Process())
    expected = rf"checkpoint {checkpoint} and data set {other} are of different processes: period_um 1\.6 against 2\.0"
    for paths in ([other], [data, other]):
        with pytest.raises(ValueError, match=expected):
            read_source(checkpoint, paths)
    merged = make_data(tmp_path / "merged", merged_greens=True)
    with pytest.raises(
        ValueError, match=f"data set {merged} knows only the mean of G1 and G2, checkpoint {checkpoint}"
    ):
        read_source(checkpoint, [merged])


def test_two_data_sets_of_one_name_are_refused(checkpoint: Path, data: Path) -> None:
    with pytest.raises(ValueError, match=f"--data names several data sets called {data.name}"):
        read_source(checkpoint, [data, data])


def test_a_checkpoint_without_provenance_takes_it_from_the_data(
    data: Path, trained_on: Provenance, process: Process, make_checkpoint: MakeFile, make_data: MakeFile, tmp_path: Path
) -> None:
    decoder = DiffractionNetConfig(channels=32, width=16, blocks=1, heads=2, wavelengths=31)
    old = make_checkpoint(tmp_path / "old.ckpt", decoder, None)
    with pytest.raises(ValueError, match=r"does not record what it was trained on: name every data set .* by --data"):
        read_source(old)
    other = make_data(tmp_path / "other", seed=1)
    source = read_source(old, [data, other])
    assert source.from_data
    assert source.provenance.process == process
    assert source.provenance.preset == ""
    assert [part.name for part in source.provenance.data] == [data.name, "other"]
    assert source.provenance.data[0] == trained_on.data[0]
    wide = make_data(tmp_path / "wide", Process(wavelength_step_nm=5))
    with pytest.raises(
        ValueError, match=r"predicts 31 wavelengths, but the process of data set .*wide has 61, from 400 to 700"
    ):
        read_source(old, [wide])


def test_a_network_with_other_outputs_than_its_data_is_refused(
    trained_on: Provenance, data: Path, make_checkpoint: MakeFile, tmp_path: Path
) -> None:
    decoder = DiffractionNetConfig(channels=32, width=16, blocks=1, heads=2)
    file = make_checkpoint(tmp_path / "wrong.ckpt", decoder, trained_on)
    with pytest.raises(
        ValueError, match=r"predicts 301 wavelengths, but the process of checkpoint .* has 31, from 450"
    ):
        read_source(file, [data])


def test_a_field_network_of_another_process_than_its_data_is_refused(
    trained_on: Provenance, data: Path, process: Process, make_checkpoint: MakeFile, tmp_path: Path
) -> None:
    moved = process.model_copy(update={"distance_um": 3.0})
    file = make_checkpoint(
        tmp_path / "wrong.ckpt", DiffractionFieldNetConfig(stem=8, width=16, process=moved), trained_on
    )
    with pytest.raises(ValueError, match=r"wrong.ckpt and its provenance are of .*: distance_um 3\.0 against 2\.0"):
        read_source(file, [data])


def test_where_only_the_mean_of_the_greens_was_taught_both_are_that_mean(
    process: Process, make_data: MakeFile, make_checkpoint: MakeFile, tmp_path: Path
) -> None:
    merged = make_data(tmp_path / "merged", merged_greens=True)
    known = provenance({"merged": load(merged)})
    config = DiffractionFieldNetConfig(
        stem=8, width=16, blocks=0, spectral_basis=8, wavelength_nodes=16, process=process
    )
    source = read_source(make_checkpoint(tmp_path / "merged.ckpt", config, known), [merged])
    assert isinstance(source.served, MeanGreens)
    density = torch.rand(2, 1, 128, 128)
    with torch.inference_mode():
        expected, got = source.network(density), source.served(density)
    assert (expected[:, 0, 1] != expected[:, 1, 0]).any()
    mean = (expected[:, 0, 1] + expected[:, 1, 0]) / 2
    for row, column in ((0, 1), (1, 0)):
        torch.testing.assert_close(got[:, row, column], mean)
    for corner in (0, 1):
        torch.testing.assert_close(got[:, corner, corner], expected[:, corner, corner])
    with pytest.raises(ValueError, match=r"--symmetric: .*merged\.ckpt was trained on the mean of G1 and G2 only"):
        next(build(source, Variants(images=2), "test", report=print))
