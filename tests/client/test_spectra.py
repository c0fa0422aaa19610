from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from metaspec import Spectra

WAVELENGTHS = np.linspace(400, 700, 301)


@pytest.fixture
def spectra() -> Spectra:
    values = np.random.default_rng(0).random((3, 4, 301)).astype(np.float32)
    return Spectra(values, WAVELENGTHS, model="diffractionnet", version="4")


def test_it_behaves_like_an_array_of_structures(spectra: Spectra) -> None:
    assert len(spectra) == 3
    assert np.asarray(spectra).shape == (3, 4, 301)
    np.testing.assert_array_equal(spectra[1].values, spectra.values[1:2])
    np.testing.assert_array_equal(spectra[-1].values, spectra.values[2:])
    np.testing.assert_array_equal(spectra[1:].values, spectra.values[1:])
    np.testing.assert_array_equal(spectra.channel("G2"), spectra.values[:, 2])
    assert repr(spectra) == (
        "<Spectra: 3 structures, R/G1/G2/B, 301 wavelengths from 400 to 700 nm, diffractionnet version 4>"
    )
    with pytest.raises(IndexError):
        spectra[3]
    with pytest.raises(ValueError, match="one of R, G1, G2, B"):
        spectra.channel("green")


def test_figures_of_merit_of_an_ideal_router() -> None:
    blue, green = WAVELENGTHS < 500, (WAVELENGTHS >= 500) & (WAVELENGTHS < 600)
    red = (WAVELENGTHS >= 600) & (WAVELENGTHS < 700)  # 700 nm itself belongs to no band
    values = np.stack([0.9 * red, 0.3 * green, 0.4 * green, 0.6 * blue])[None].astype(np.float32)
    spectra = Spectra(values, WAVELENGTHS)
    np.testing.assert_allclose(spectra.colour_efficiency(), [[0.9, 0.7, 0.6]], rtol=1e-5)
    np.testing.assert_allclose(spectra.crosstalk(), [[0, 0, 0]])
    np.testing.assert_allclose(spectra.min_efficiency(), [0.6], rtol=1e-5)


def test_crosstalk_is_the_mean_over_the_other_bands(spectra: Spectra) -> None:
    power = spectra.values[:, 1] + spectra.values[:, 2]
    others = (WAVELENGTHS < 500) | ((WAVELENGTHS >= 600) & (WAVELENGTHS < 700))
    np.testing.assert_allclose(spectra.crosstalk()[:, 1], power[:, others].mean(axis=1), rtol=1e-5)


def test_no_wavelength_in_a_band() -> None:
    with pytest.raises(ValueError, match="no wavelength lies in the band"):
        Spectra(np.zeros((1, 4, 2), np.float32), np.array([650.0, 660.0])).colour_efficiency()
    red = Spectra(np.full((1, 4, 2), 0.25, np.float32), np.array([650.0, 660.0]))
    assert red.colours == ("R",)
    np.testing.assert_array_equal(red.colour_efficiency(red.colours), [[0.25]])
    with pytest.raises(ValueError, match=r"band of green \(500 to 600 nm\), got 650 to 660 nm"):
        red.min_efficiency()


def test_xarray(spectra: Spectra) -> None:
    array = spectra.to_xarray()
    assert array.dims == ("structure", "channel", "wavelength")
    assert float(array.sel(channel="B", wavelength=550)[2]) == spectra.values[2, 3, 150]


def test_plot_draws_a_line_for_each_detector(spectra: Spectra) -> None:
    from matplotlib import pyplot

    ax = spectra.plot(1)
    assert [line.get_label() for line in ax.get_lines()] == ["R", "G1", "G2", "B"]
    np.testing.assert_array_equal(ax.get_lines()[3].get_ydata(), spectra.values[1, 3])
    assert ax.get_xlabel() == "wavelength (nm)"
    pyplot.close()


def test_importing_the_client_is_light() -> None:
    heavy = {"torch", "jax", "pandas", "matplotlib", "xarray", "fastapi", "onnxruntime"}
    code = f"import sys, metaspec; print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_a_table(spectra: Spectra) -> None:
    table = spectra.to_dataframe()
    assert table.shape == (len(spectra) * len(spectra.wavelengths_nm), 4)
    assert table.loc[(1, spectra.wavelengths_nm[7]), "G2"] == spectra.values[1, 2, 7]


def test_axes_of_others_get_labels_too(spectra: Spectra) -> None:
    from matplotlib.figure import Figure

    ax = spectra.plot(1, ax=Figure().subplots())
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("wavelength (nm)", "efficiency")


@pytest.mark.parametrize(
    ("method", "package"), [("to_xarray", "xarray"), ("to_dataframe", "pandas"), ("plot", "matplotlib")]
)
def test_what_is_not_installed(spectra: Spectra, monkeypatch: pytest.MonkeyPatch, method: str, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ImportError, match=f"pip install {package}"):
        getattr(spectra, method)()
