"""Random structures: their families, symmetric copies and splits."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from metaspec_contract.structures import Structure, symmetries
from metaspec_simulation.data.families import (
    FAMILIES,
    FINE,
    GREY,
    MIXTURE,
    SPLITS,
    distinct,
    orbit_key,
    random_structure,
    split_of,
)
from metaspec_simulation.data.levels import as_levels, as_structure, is_grey
from metaspec_simulation.data.regular import REGULAR, THINNEST


@pytest.mark.parametrize("family", FAMILIES)
def test_families(family: str) -> None:
    drawn = [random_structure(np.random.default_rng(seed), family) for seed in range(12)]
    again = [random_structure(np.random.default_rng(seed), family) for seed in range(12)]
    np.testing.assert_array_equal(drawn, again)
    assert len({orbit_key(structure) for structure in drawn}) == 12
    for structure in drawn:
        assert structure.shape == (128, 128)
        assert structure.dtype == np.uint8
        assert set(np.unique(structure)) <= {0, 1}
        assert (structure == structure.T).all() == family.endswith("_diagonal")
        void = 1 - structure  # no gap narrower than 4 pixels, 62 nm, anywhere along a row or a column
        cross = ndimage.grey_opening(void, size=(2, 2), mode="wrap")
        assert (cross == void).mean() > 0.99


def test_structures_of_published_data_sets_are_drawn_as_ever() -> None:
    drawn = [random_structure(np.random.default_rng([1, n]), FAMILIES[n % 6]) for n in range(12)]
    digest = hashlib.sha256(np.stack(drawn).tobytes()).hexdigest()
    assert digest == "73d0efc6278b11e15403ebfb0785019a47b88c061b79443bb143a8d31e57441b"


@pytest.mark.parametrize("family", [*FINE, *REGULAR])
def test_fine_and_regular_families(family: str) -> None:
    drawn = np.stack([random_structure(np.random.default_rng(seed), family) for seed in range(60)])
    assert drawn.dtype == np.uint8
    assert set(np.unique(drawn)) == {0, 1}
    assert len(distinct(drawn)) >= 54
    fill = drawn.mean(axis=(1, 2))
    assert fill.min() < 0.4
    assert fill.max() > 0.6
    if family in (*FINE, "gratings", "chequerboards"):
        narrowest = min(narrowest_run(one) for one in drawn)
        assert THINNEST <= narrowest <= THINNEST + 2, "features down to 47 nm, and none below"


def narrowest_run(structure: Structure) -> int:
    """Smallest extent of a solid feature in the direction in which it is widest, by opening with lines."""
    for width in range(1, 129):
        opened = [ndimage.grey_opening(structure, size=size, mode="wrap") for size in ((1, width), (width, 1))]
        if ((opened[0] | opened[1]) < structure).any():
            return width - 1
    return 128


def test_grey_densities_are_those_of_all_stages_of_an_optimisation() -> None:
    drawn = [random_structure(np.random.default_rng(seed), GREY) for seed in range(200)]
    levels = as_levels(np.stack(drawn))
    np.testing.assert_array_equal(as_structure(levels), drawn, "8 bits hold them exactly")
    assert is_grey(levels).mean() > 0.95
    share = ((levels > 12) & (levels < 243)).mean(axis=(1, 2))
    assert np.quantile(share, 0.2) < 0.4, "some are nearly binary"
    assert np.quantile(share, 0.8) > 0.9, "others grey nearly everywhere"
    assert len({orbit_key(one) for one in drawn}) >= 198, "uniform ones may coincide"
    moved = np.roll(drawn[0].T, (5, -40), axis=(0, 1))
    assert orbit_key(moved) == orbit_key(drawn[0])


def test_the_mixture_holds_every_family() -> None:
    assert set(MIXTURE) == {*FAMILIES, *FINE, *REGULAR, GREY}
    assert 0.1 <= MIXTURE.count(GREY) / len(MIXTURE) <= 0.2


def test_an_unknown_family() -> None:
    with pytest.raises(ValueError, match=r"family must be one of random_field.*got 'spirals'"):
        random_structure(np.random.default_rng(0), "spirals")


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), rows=st.integers(0, 127), columns=st.integers(0, 127), number=st.integers(0, 31))
def test_symmetric_copies_share_their_key_and_split(seed: int, rows: int, columns: int, number: int) -> None:
    structure = random_structure(np.random.default_rng(seed), FAMILIES[seed % len(FAMILIES)])
    image = list(symmetries())[number].apply(np.roll(structure, (rows, columns), axis=(0, 1)))
    assert orbit_key(image) == orbit_key(structure)
    assert split_of(image) == split_of(structure)
    changed = structure.copy()
    changed[rows, columns] ^= 1
    assert orbit_key(changed) != orbit_key(structure)


def test_splits_have_their_shares() -> None:
    splits = [split_of(random_structure(np.random.default_rng(seed), "rectangles")) for seed in range(400)]
    shares = [splits.count(name) / 400 for name in SPLITS]
    np.testing.assert_allclose(shares, [0.8, 0.1, 0.1], atol=0.06)
