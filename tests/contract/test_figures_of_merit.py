from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from metaspec_contract.detectors import (
    BANDS_NM,
    CHANNELS,
    COLOUR_NAMES,
    COLOURS,
    DETECTORS,
    QUADRANTS,
    SPREAD,
    channel_index,
    check_colour,
)
from metaspec_contract.figures_of_merit import (
    colour_efficiency,
    covered_colours,
    crosstalk,
    crosstalk_colours,
    crosstalk_weights,
    efficiency_weights,
    in_band,
    weighted_sums,
)

Weights = Callable[[str, Sequence[float], Sequence[str]], NDArray[np.float64]]


def test_every_detector_has_a_quadrant_and_a_colour() -> None:
    assert [QUADRANTS[name] for name in CHANNELS] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert sorted(name for names in DETECTORS.values() for name in names) == sorted(CHANNELS)
    assert tuple(DETECTORS) == tuple(BANDS_NM) == tuple(COLOUR_NAMES) == COLOURS
    edges = sorted(BANDS_NM.values())
    assert all(before[1] == after[0] for before, after in pairwise(edges))  # no gap, no overlap


@pytest.mark.parametrize(
    ("wavelength", "colour"),
    [
        (399.999, None),
        (400.0, "B"),
        (499.999, "B"),
        (500.0, "G"),
        (599.999, "G"),
        (600.0, "R"),
        (699.999, "R"),
        (700.0, None),
    ],
)
def test_the_lower_edge_is_in_and_the_upper_one_out(wavelength: float, colour: str | None) -> None:
    assert [name for name in COLOURS if in_band(name, [wavelength]).all()] == ([colour] if colour else [])


def by_hand(spectra: NDArray[Any], wavelengths: Sequence[float], colour: str, own: bool) -> float:
    """Mean, in one colour's detectors, of the power in its band or in the two others, with sums and lists alone."""
    low, high, detectors = {"R": (600, 700, [0]), "G": (500, 600, [1, 2]), "B": (400, 500, [3])}[colour]
    visible = [i for i, wavelength in enumerate(wavelengths) if 400 <= wavelength < 700]
    chosen = [i for i in visible if (low <= wavelengths[i] < high) == own]
    return float(sum(spectra[detector, i] for detector in detectors for i in chosen) / len(chosen))


@settings(deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    first=st.integers(300, 499),
    last=st.integers(600, 800),
    step=st.sampled_from([1.0, 2.5, 7.0]),
    extra=st.booleans(),
)
def test_against_an_independent_formula(seed: int, first: int, last: int, step: float, extra: bool) -> None:
    wavelengths = np.arange(first, last + step, step).tolist()
    channels = (*CHANNELS, SPREAD) if extra else CHANNELS
    spectra = np.random.default_rng(seed).random((2, 3, len(channels), len(wavelengths)))
    for figure, own in ((colour_efficiency, True), (crosstalk, False)):
        found = figure(spectra, wavelengths, channels)
        assert found.shape == (2, 3, 3)
        assert found.dtype == np.float32
        expected = [[[by_hand(one, wavelengths, c, own) for c in COLOURS] for one in two] for two in spectra]
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_channels_in_another_order() -> None:
    wavelengths, spectra = np.arange(400.0, 701), np.random.default_rng(0).random((4, 301))
    order = [3, 1, 0, 2]
    shuffled = colour_efficiency(spectra[order], wavelengths, [CHANNELS[i] for i in order])
    np.testing.assert_allclose(shuffled, colour_efficiency(spectra, wavelengths), rtol=1e-6)


@pytest.mark.parametrize(
    ("weights", "colour", "wavelengths", "channels", "message"),
    [
        (efficiency_weights, "green", [550], CHANNELS, "colour must be one of R, G, B, got 'green'"),
        (crosstalk_weights, "r", [550], CHANNELS, "colour must be one of R, G, B, got 'r'"),
        (efficiency_weights, "G", [550], ("R", "G1", "B"), "channel must be one of R, G1, B, got 'G2'"),
        (
            efficiency_weights,
            "R",
            [400, 700],
            CHANNELS,
            "no wavelength lies in the band of red (600 to 700 nm), got 400 to 700 nm",
        ),
        (
            crosstalk_weights,
            "G",
            [500, 599],
            CHANNELS,
            "no wavelength lies in the band of red or blue (600 to 700 nm or 400 to 500 nm), got 500 to 599 nm",
        ),
        (efficiency_weights, "B", [], CHANNELS, "no wavelength lies in the band of blue (400 to 500 nm), got none"),
    ],
)
def test_what_is_refused(
    weights: Weights, colour: str, wavelengths: list[float], channels: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        weights(colour, wavelengths, channels)


@pytest.mark.parametrize(
    ("wavelengths", "covered", "leaking"),
    [
        (np.arange(400.0, 701), COLOURS, COLOURS),
        (np.arange(400.0, 551), ("G", "B"), ("G", "B")),  # a part of the green band
        (np.arange(600.0, 1001), ("R",), ()),
        (np.arange(900.0, 1001), (), ()),
    ],
)
def test_colours_whose_band_is_not_reached_are_left_out(
    wavelengths: NDArray[np.float64], covered: tuple[str, ...], leaking: tuple[str, ...]
) -> None:
    assert covered_colours(wavelengths) == covered
    assert crosstalk_colours(wavelengths) == leaking
    spectra = np.random.default_rng(0).uniform(size=(2, 4, len(wavelengths)))
    efficiency = colour_efficiency(spectra, wavelengths, colours=covered)
    assert efficiency.shape == (2, len(covered))
    for column, colour in enumerate(covered):
        (weighted,) = weighted_sums(spectra, [efficiency_weights(colour, wavelengths)]).T
        np.testing.assert_array_equal(efficiency[:, column], weighted)
    assert crosstalk(spectra, wavelengths, colours=leaking).shape == (2, len(leaking))
    if covered != COLOURS:
        with pytest.raises(
            ValueError, match=r"no wavelength lies in the band of \w+ \(\d+ to \d+ nm\), got \d+ to \d+ nm"
        ):
            colour_efficiency(spectra, wavelengths)


def test_spectra_of_another_shape() -> None:
    wavelengths = np.arange(400.0, 701)
    message = r"^spectra must end in \(channels, wavelengths\) = \(4, 301\), got \(5, 2, 2, 301\)$"
    with pytest.raises(ValueError, match=message):
        colour_efficiency(np.zeros((5, 2, 2, 301)), wavelengths)


def test_sums_with_given_weights() -> None:
    spectra = np.arange(12.0).reshape(2, 2, 3)
    sums = weighted_sums(spectra, [np.ones((2, 3)), np.eye(2, 3)])
    np.testing.assert_array_equal(sums, [[15, 4], [51, 16]])
    assert sums.dtype == np.float32


def test_names() -> None:
    assert channel_index("B", CHANNELS) == 3
    for colour in COLOURS:
        check_colour(colour)
    with pytest.raises(ValueError, match="channel must be one of R, G1, G2, B, got 'G'"):
        channel_index("G", CHANNELS)
