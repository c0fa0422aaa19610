"""Batches: augmentation that is exact by physics, several data sets as one, and what is recorded of them."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr

from metaspec_contract.process import Process
from metaspec_contract.structures import pack, symmetries
from metaspec_simulation.dataset import HARMONIC_STEP, Samples, load
from metaspec_simulation.physics.farfield import shifted_basis
from metaspec_testing.data_sets import in_older_layout
from metaspec_training.data.augmentation import Batch, Expansion
from metaspec_training.data.datamodule import SpectraDataModule
from metaspec_training.data.packed import PackedSpectra
from metaspec_training.networks.symmetric import apply_symmetry


def expand(samples: Samples, items: Sequence[int], draw: tuple[int, int] | None, positions: int = 1) -> Batch:
    expansion = Expansion(samples.process.wavelengths_nm, samples.harmonic_wavelengths_nm)
    batch: Batch = expansion(PackedSpectra(samples, draw, positions)[items])
    return batch


def test_symmetries_of_tensors_are_those_of_the_contract() -> None:
    array = np.random.default_rng(0).random((2, 1, 6, 6))
    for symmetry in symmetries():
        moved = apply_symmetry(symmetry, torch.from_numpy(array))
        np.testing.assert_array_equal(moved, symmetry.apply(array))


def test_batches_as_simulated(samples: Samples) -> None:
    batch = expand(samples, range(4), None)
    np.testing.assert_array_equal(batch.density[:, 0], samples.structures[:4])
    np.testing.assert_array_equal(batch.spectra.flatten(0, 1).flatten(1, 2), samples.spectra[:4])
    assert not batch.shift.any()


def test_augmented_labels_are_those_of_the_moved_structure(samples: Samples) -> None:
    """Every position is a structure moved and mirrored in numpy, its labels the solver's own evaluation of the harmonics."""
    draw, positions = (3, 1), 4
    batch = expand(samples, range(5), draw, positions)
    again = expand(samples, range(5), draw, positions)
    other_epoch = expand(samples, range(5), (3, 2), positions)
    for item in range(5):
        packed = PackedSpectra(samples, draw, positions)[[item]]
        symmetry = list(symmetries())[int(packed.symmetry)]
        for k, (row, column) in enumerate(packed.shift[0].tolist()):
            moved = symmetry.apply(np.roll(samples.structures[item], (row, column), axis=(0, 1)))
            shown = np.roll(batch.density[item, 0].numpy(), batch.shift[item, k].int().tolist(), axis=(0, 1))
            np.testing.assert_array_equal(shown, moved)
            basis = shifted_basis(np.array([row]), np.array([column]))[0]
            exact = (basis @ (HARMONIC_STEP * samples.harmonics[item]))[list(symmetry.channels)]
            np.testing.assert_allclose(batch.spectra[item, k].flatten(0, 1)[:, ::2], exact, atol=2e-5)
        torch.testing.assert_close(again.spectra[item], batch.spectra[item])
        assert not torch.equal(other_epoch.density[item], batch.density[item])


@pytest.mark.parametrize("harmonics", [True, False])
def test_structures_of_every_size_and_grey_ones_move_alike(harmonics: bool) -> None:
    """64, 128 and 256 pixels, bits in two to four words, by pixels or by half a period, as numpy moves and mirrors them."""
    rng = np.random.default_rng(0)
    for pixels in (64, 128, 256):
        structures = rng.integers(0, 2, (12, pixels, pixels)).astype(np.uint8)
        densities = rng.integers(0, 256, (2, pixels, pixels)).astype(np.uint8)
        grey = np.full(12, -1)
        grey[[1, 7]] = 0, 1
        samples = some_samples(
            process=Process(pixels=pixels),
            packed=pack(structures),
            densities=densities,
            grey=grey,
            spectra=rng.random((12, 4, 301), np.float32),
            harmonics=np.ones((12, 225, 4) if harmonics else (12, 0, 0), np.int16),
            harmonic_wavelengths_nm=np.linspace(400, 700, 4),
        )
        shown = structures.astype(np.float32)
        shown[[1, 7]] = densities / np.float32(255)
        items = [7, 3, *range(12)]
        batch = expand(samples, items, (0, pixels), positions=3)
        packed = PackedSpectra(samples, (0, pixels), 3)[items]
        for row, item in enumerate(items):
            symmetry = list(symmetries())[int(packed.symmetry[row])]
            for k, shift in enumerate(packed.shift[row].tolist()):
                moved = symmetry.apply(np.roll(shown[item], shift, axis=(0, 1)))
                relative = (batch.shift[row, k] * pixels / 128).int().tolist()
                np.testing.assert_allclose(np.roll(batch.density[row, 0], relative, axis=(0, 1)), moved, atol=1e-6)
                if not harmonics:
                    quadrants = samples.spectra[item].reshape(2, 2, -1)
                    halves = [2 * pixel // pixels for pixel in shift]
                    labels = symmetry.apply(np.moveaxis(np.roll(quadrants, halves, axis=(0, 1)), -1, 0))
                    np.testing.assert_array_equal(batch.spectra[row, k], np.moveaxis(labels, 0, -1))


def test_what_is_drawn_of_a_sample_does_not_depend_on_the_others() -> None:
    """Nor on the order in which an epoch shows them, or on the epochs before."""
    samples = some_samples(harmonics=np.ones((12, 225, 4), np.int16))
    whole, part = (PackedSpectra(each, (5, 0), 3) for each in (samples, samples.take(np.arange(5))))
    ours, theirs = whole.drawn(5, 2)[[4, 2]], part.drawn(5, 1).drawn(5, 2)[range(5)]
    assert torch.equal(ours.shift, theirs.shift[[4, 2]])
    assert torch.equal(ours.symmetry, theirs.symmetry[[4, 2]])
    assert not torch.equal(ours.shift, whole.drawn(5, 3)[[4, 2]].shift)
    with pytest.raises(ValueError, match="packed without a draw"):
        PackedSpectra(samples).drawn(5, 0)


def some_samples(**fields: Any) -> Samples:
    """12 empty samples of the default process, or of other fields."""
    empty: dict[str, Any] = {
        "process": Process(),
        "attributes": {},
        "family": np.full(12, "random"),
        "split": np.full(12, "train"),
        "packed": np.zeros((12, 2048), np.uint8),
        "spectra": np.zeros((12, 4, 301), np.float32),
        "harmonics": np.zeros((12, 0, 0), np.int16),
        "harmonic_wavelengths_nm": np.linspace(400, 700, 4),
        "energy_error": np.zeros(12, np.float32),
        "flag": np.zeros(12, np.uint8),
        "grey": np.full(12, -1),
        "densities": np.zeros((0, 128, 128), np.uint8),
        "harmonic_orders": np.zeros((2, 113), np.int64),
        "ordered": np.full(12, -1),
        "orders": np.zeros((0, 2, 2, 2, 0, 0), np.int16),
    }
    return Samples(**(empty | fields))


@pytest.mark.parametrize("merged", [False, True])
def test_imported_samples_are_augmented_by_exact_symmetries_only(samples: Samples, merged: bool) -> None:
    """Without harmonics, and with only the mean of G1 and G2 known: every sample drawn is among the known copies."""
    few = samples.take(np.arange(6))
    spectra = few.spectra.copy()
    if merged:
        spectra[:, 1:3] = spectra[:, 1:3].mean(axis=1, keepdims=True)
    imported = dataclasses.replace(
        few,
        spectra=spectra,
        harmonics=np.zeros((6, 0, 0), np.int16),
        harmonic_wavelengths_nm=np.zeros(0),
        attributes={"merged_greens": merged},
    )
    seen = set()
    for epoch in range(12):
        batch = expand(imported, range(6), (0, epoch))
        for item in range(6):
            density, labels = batch.density[item, 0].numpy(), batch.spectra[item, 0].flatten(0, 1).numpy()
            copies = [(n, s) for n, s in enumerate(symmetries()) if (s.apply(few.structures[item]) == density).all()]
            assert copies
            assert any((spectra[item][list(s.channels)] == labels).all() for _, s in copies)
            if merged:
                assert (labels[1] == labels[2]).all(), "a mean of greens never turns up as red or blue"
            seen.add(copies[0][0])
    assert len(seen) > (6 if merged else 15)


def test_low_fidelity_labels_are_marked(fine: Path, coarse: Path) -> None:
    data = SpectraDataModule([str(fine), str(coarse)], batch_size=20)
    (batch,) = data.train_dataloader()
    assert int(batch.low_fidelity.sum()) == 4
    assert not any(batch.low_fidelity.any() for batch in data.val_dataloader())


@pytest.mark.parametrize(("limit", "counts"), [(None, (16, 4)), (18, (16, 2)), (10, (10,))])
def test_the_provenance_counts_what_is_trained_on(
    fine: Path, coarse: Path, limit: int | None, counts: tuple[int, ...]
) -> None:
    data = SpectraDataModule([str(fine), str(coarse)], limit=limit)
    assert tuple(source.structures for source in data.provenance.data) == counts
    assert [source.name for source in data.provenance.data] == ["fine", "coarse"][: len(counts)]
    assert data.provenance.process == data.first.process
    assert len(data.train_samples()) == sum(counts)


def test_grey_densities_reach_the_network(samples: Samples) -> None:
    grey = int(np.flatnonzero(samples.grey >= 0)[0])
    density = expand(samples, range(grey, grey + 1), None).density[0, 0].numpy()
    np.testing.assert_allclose(density, samples.structures[grey], rtol=0, atol=1e-7)
    assert np.mean((density > 0) & (density < 1)) > 0


def test_flagged_samples_are_left_out(fine: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    flagged = Path(shutil.copytree(fine, tmp_path / "flagged"))
    group: Any = zarr.open_group(flagged)
    group["flag"][:3] = 1
    with caplog.at_level("INFO"):
        data = SpectraDataModule(str(flagged))
    assert len(data.train_samples()) == 13
    assert data.provenance.data[0].structures == 13
    assert (
        "flagged: 3 of 22 samples have an energy error above the bound of their data set and are left out"
        in caplog.text
    )
    group["flag"][:] = 1
    with pytest.raises(ValueError, match="no structures to train on in flagged"):
        SpectraDataModule(str(flagged))


def test_data_sets_of_both_layouts_as_one(fine: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Labels of the older layout, which end at the seventh harmonic, are the same up to those above; structures count once."""
    old = Path(shutil.copytree(fine, tmp_path / "old"))
    group: Any = zarr.open_group(old)
    group["structure"][:] = 255 * (group["structure"][:] > 127)  # the older layout has no grey ones
    in_older_layout(old)
    with caplog.at_level("INFO"):
        data = SpectraDataModule([str(old), str(fine)])
    grey = int((load(fine).of("train").grey >= 0).sum())
    assert f"32 training samples of {16 + grey} distinct structures, in 2 data sets" in caplog.text
    joined = data.train_samples()
    assert joined.harmonics.shape[1] == 225
    alone, both = SpectraDataModule(str(old)), {}
    for samples, expansion in ((alone.train_samples(), alone.expansion), (joined, data.expansion)):
        both[len(samples)] = expansion(PackedSpectra(samples, (0, 0), 2)[range(16)])
    torch.testing.assert_close(both[16].spectra, both[32].spectra, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(joined.structures[16:], load(fine).of("train").structures)


def test_data_sets_that_do_not_fit_together_are_refused(fine: Path, other: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"data.path: fine and other are of different processes: period_um 2.0 against 1.6"
    ):
        SpectraDataModule([str(fine), str(other)])
    with pytest.raises(ValueError, match=r"data.path must name different data sets, got fine twice"):
        SpectraDataModule([str(fine), f"{fine}/"])
    imported = copy_of(fine, tmp_path / "imported", harmonics=False)
    with pytest.raises(
        ValueError, match="fine has 151 wavelengths of harmonics, imported has no wavelengths of harmonics"
    ):
        SpectraDataModule([str(fine), str(imported)])
    with pytest.raises(ValueError, match="needs data sets that hold harmonics"):
        SpectraDataModule(str(imported), positions=2)
    zarr.open_group(imported).attrs["merged_greens"] = True
    for order in ([fine, imported], [imported, fine]):  # neither is the mean taught as each, nor the difference lost
        with pytest.raises(
            ValueError,
            match=r"imported knows only the mean of G1 and G2, fine knows each of them: train on one, then start from its "
            r"weights \(model.weights\) on the other",
        ):
            SpectraDataModule(list(map(str, order)))


def copy_of(source: Path, target: Path, harmonics: bool) -> Path:
    """A copy of a data set, with or without its harmonics."""
    left_out = () if harmonics else ("harmonics", "harmonic_wavelength")
    shutil.copytree(source, target, ignore=shutil.ignore_patterns(*left_out))
    return target
