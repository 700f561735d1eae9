"""Regions are the same whether a map is labelled in strips or in one go."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from satdiff_cli import regions
from satdiff_cli.regions import Regions, cut_strips, find_neighbours


def draw_codes(seed: int, shape: tuple[int, int], share: float) -> np.ndarray[tuple[int, int], np.dtype[np.uint8]]:
    rng = np.random.default_rng(seed)
    return rng.choice(np.array([0, 1, 255], np.uint8), shape, p=[0.9 - share * 0.9, share * 0.9, 0.1])


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(1, 40),
    st.integers(1, 33),
    st.floats(0.05, 0.95),
    st.booleans(),
    st.integers(1, 9),
)
def test_regions_of_strips_are_those_of_the_whole_map(
    seed: int, height: int, width: int, share: float, diagonal: bool, rows: int
) -> None:
    codes = draw_codes(seed, (height, width), share)
    expected, count = ndimage.label(codes == 1, ndimage.generate_binary_structure(2, 2 if diagonal else 1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(regions, "STRIP_ROWS", rows)
        found = Regions(codes, 1, diagonal=diagonal)
        numbers = np.concatenate([part for _, part in found.strips()])
    assert found.count == count
    assert np.array_equal(numbers > 0, expected > 0)
    pairs = np.unique(np.stack([numbers.ravel(), expected.ravel()]), axis=1)
    assert pairs.shape[1] == len(np.unique(expected)), "each region has one number, each number one region"
    strips_of_firsts = [int(np.argmax(numbers.ravel() == number)) // width // rows for number in range(1, count + 1)]
    assert strips_of_firsts == sorted(strips_of_firsts), "numbers go from top to bottom"


@pytest.mark.parametrize("value", [0, 1])
def test_a_map_of_one_value_is_one_region_or_none(value: int) -> None:
    found = Regions(np.full((700, 3), value, np.uint8), 1)
    assert found.count == value
    assert all((part == value).all() for _, part in found.strips())


@pytest.mark.parametrize("shape", [(1, 1), (3, 10**7), (1000, 7)])
def test_strips_cover_every_row_once_and_stay_small(shape: tuple[int, int]) -> None:
    strips = list(cut_strips(shape))
    assert [strip.row for strip in strips] == list(np.cumsum([0, *(strip.height for strip in strips)]))[:-1]
    assert sum(strip.height for strip in strips) == shape[0]
    assert all(strip.height == 1 or strip.height * strip.width <= regions.STRIP_PIXELS for strip in strips)


@pytest.mark.parametrize("diagonal", [False, True])
def test_neighbours_of_a_strip_see_over_its_edges_and_count_the_border(
    diagonal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(regions, "STRIP_ROWS", 4)
    codes = draw_codes(3, (13, 9), 0.3)
    padded = np.pad(codes == 255, 1, constant_values=True)
    expected = ndimage.binary_dilation(padded, ndimage.generate_binary_structure(2, 2 if diagonal else 1))[1:-1, 1:-1]
    strips = [find_neighbours(codes, strip, value=255, diagonal=diagonal) for strip in cut_strips(codes.shape)]
    assert len(strips) == 4
    assert np.array_equal(np.concatenate(strips), expected)
