"""Sources of spectra: what a subclass inherits, which cotangents are none, and how sources are found."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import ArrayLike, NDArray

from metaspec_contract.detectors import CHANNELS
from metaspec_contract.process import Process
from metaspec_contract.source import (
    InvalidCotangent,
    Source,
    SourceInfo,
    check_cotangent,
    find_source,
    source_names,
)
from metaspec_contract.spectra import Spectra
from metaspec_contract.structures import as_density, check_structures

PROCESS = Process(wavelength_step_nm=100)
SHAPE = (4, 4)


class Filled(Source):
    """Every efficiency is the share of solid."""

    def metadata(self) -> SourceInfo:
        return SourceInfo("filled", "1", PROCESS, PROCESS.wavelengths_nm, CHANNELS, merged_greens=False)

    def predict(self, structures: ArrayLike) -> Spectra:
        share = as_density(check_structures(structures)).mean(axis=(1, 2, 3))
        return Spectra.of_model(np.tile(share[:, None, None], (1, *SHAPE)), self.metadata())

    def gradient(self, structures: ArrayLike, cotangent: ArrayLike) -> NDArray[np.float32]:
        count = len(check_structures(structures))
        weights = check_cotangent(cotangent, count, self.metadata().spectra_shape).sum(axis=(-2, -1))
        return np.tile((weights / 128**2)[..., None, None], (1, 128, 128)).astype(np.float32)


def test_a_subclass_inherits_the_rest() -> None:
    structures = np.zeros((2, 128, 128))
    structures[1, :64] = 1
    with Filled() as source:
        value, gradient, spectra = source.predict_and_gradient(
            structures, lambda spectra: ((spectra.values**2).mean(axis=(1, 2)), spectra.values / 8)
        )
    np.testing.assert_allclose(value, [0, 0.25])
    np.testing.assert_allclose(gradient[:, 5, 7], [0, 1 / 128**2])
    assert spectra.label == source.metadata().label == "filled version 1"
    assert source.metadata().spectra_shape == SHAPE
    assert source.metadata().pixels == (128, 128)


def test_a_source_without_a_gradient_is_none() -> None:
    class Half(Source):
        def predict(self, structures: ArrayLike) -> Spectra:
            return Filled().predict(structures)

    with pytest.raises(TypeError, match=r"abstract methods '?gradient'?, '?metadata'?"):
        Half()  # type: ignore[abstract]


def test_a_solver_says_so() -> None:
    info = SourceInfo("solver", "24 cells", PROCESS, PROCESS.wavelengths_nm, CHANNELS, False, simulated=True)
    spectra = Spectra.of_model(np.zeros((1, *SHAPE), np.float32), info)
    assert spectra.simulated
    assert spectra.label == info.label == "solver (24 cells)"
    assert repr(spectra).endswith("nm, solver (24 cells)>")


@pytest.mark.parametrize(
    ("cotangent", "message"),
    [
        (np.zeros((4, 5)), r"cotangent must be \(4, 4\), \(2, 4, 4\) or \(2, K, 4, 4\), got \(4, 5\)"),
        (np.zeros((3, 4, 4)), r"got \(3, 4, 4\)"),
        (np.zeros((2, 1, 1, 4, 4)), r"got \(2, 1, 1, 4, 4\)"),
        (np.full((4, 4), np.nan), "cotangent must be finite, got nan"),
        (np.full((4, 4), 1e39), "cotangent must be finite, got inf"),
        (np.full((4, 4), "one"), "cotangent must be numbers, got <U3"),
        ([[1, 2], [3]], "cotangent must be an array"),
        (np.ma.masked_less(np.zeros((4, 4)), 1), "must be given everywhere, got a masked array: use its method filled"),
    ],
)
def test_cotangents_that_are_none(cotangent: ArrayLike, message: str) -> None:
    with pytest.raises(InvalidCotangent, match=message):
        Filled().gradient(np.zeros((2, 128, 128)), cotangent)


def install(folder: Path, entry_point: str) -> None:
    """A distribution `elsewhere` with a source, as pip leaves it."""
    (folder / "elsewhere.py").write_text("def make(value=0): return value\n")
    described = folder / "elsewhere-1.0.dist-info"
    described.mkdir()
    (described / "METADATA").write_text("Metadata-Version: 2.1\nName: elsewhere\nVersion: 1.0\n")
    (described / "entry_points.txt").write_text(f"[metaspec.sources]\n{entry_point}\n")


def test_a_source_of_another_distribution_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, "mine = elsewhere:make")
    monkeypatch.syspath_prepend(tmp_path)
    made: object = find_source("mine")(value=3)
    assert made == 3
    assert {"mine", "solver"} <= set(source_names())


def test_a_source_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metaspec_contract.source.entry_points", lambda group: ())
    with pytest.raises(ImportError, match=r"^source solver needs metaspec-lab: pip install metaspec-lab$"):
        find_source("solver")
    with pytest.raises(ValueError, match=r"^source must be one of solver, got 'maxwell'$"):
        find_source("maxwell")
