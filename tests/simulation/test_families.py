"""Random structures: their families, symmetric copies and splits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from metaspec_contract.structures import symmetries
from metaspec_simulation.data.families import FAMILIES, SPLITS, orbit_key, random_structure, split_of


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
