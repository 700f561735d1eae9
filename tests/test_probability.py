"""Encodings of probabilities and masks, each against its inverse."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from satdiff_cli.probability import (
    PROBABILITY_NODATA,
    PROBABILITY_STEPS,
    decode_probability,
    decode_runs,
    encode_probability,
    encode_runs,
    threshold_probability,
)

MASK_SHAPES = hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12)
MASKS = hnp.arrays(np.uint8, MASK_SHAPES, elements=st.integers(0, 1))
PROBABILITIES = hnp.arrays(
    np.float32,
    MASK_SHAPES,
    elements=st.one_of(st.floats(0, 1, width=32), st.sampled_from([0.0, 1.0, float("nan")])),
)


@given(PROBABILITIES)
def test_decoding_restores_a_probability_to_half_a_step_and_keeps_nan(probability: NDArray[np.float32]) -> None:
    restored = decode_probability(encode_probability(probability))
    assert restored.dtype == np.float32
    assert restored.shape == probability.shape
    np.testing.assert_allclose(restored, probability, rtol=0, atol=0.5 / PROBABILITY_STEPS + 1e-7)
    assert not (restored > 1).any()


def test_every_stored_value_survives_decoding_and_encoding() -> None:
    stored = np.arange(PROBABILITY_NODATA + 1, dtype=np.uint16).reshape(2, -1)
    decoded = decode_probability(stored)
    np.testing.assert_array_equal(encode_probability(decoded), stored)
    assert np.count_nonzero(np.isnan(decoded)) == 1


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_zero_one_and_nan_are_exact(dtype: type[np.floating]) -> None:
    probability = np.array([[0, 1, np.nan]], dtype=dtype)
    encoded = encode_probability(probability)
    assert encoded.dtype == np.uint16
    assert encoded.tolist() == [[0, 65534, 65535]]  # a probability of 1 neither wraps nor reads as nodata
    np.testing.assert_array_equal(decode_probability(encoded), np.array([[0, 1, np.nan]], np.float32))


@pytest.mark.parametrize("value", [-1e-6, 1 + 1e-6, 255.0, np.inf, -np.inf])
def test_a_value_outside_zero_to_one_is_refused_instead_of_wrapped(value: float) -> None:
    with pytest.raises(ValueError, match=r"outside \[0, 1\]"):
        encode_probability(np.array([[0.5, value, np.nan]]))


@pytest.mark.parametrize("shape", [(0, 5), (1, 1), (1, 7)])
def test_empty_and_all_invalid_probabilities_round_trip(shape: tuple[int, int]) -> None:
    probability = np.full(shape, np.nan, np.float32)
    encoded = encode_probability(probability)
    assert (encoded == PROBABILITY_NODATA).all()
    np.testing.assert_array_equal(decode_probability(encoded), probability)


def test_encoding_leaves_its_argument_alone() -> None:
    probability = np.array([[0.25, np.nan]], np.float32)
    encoded = encode_probability(probability)
    decode_probability(encoded)
    np.testing.assert_array_equal(probability, np.array([[0.25, np.nan]], np.float32))
    assert encoded.tolist() == [[16384, 65535]]


def test_a_pixel_that_reaches_the_threshold_is_change_and_nan_never_is() -> None:
    probability = np.array([[0, 0.3999, 0.4, 1, np.nan]], np.float32)
    mask = threshold_probability(probability, 0.4)
    assert mask.dtype == np.uint8
    assert mask.tolist() == [[0, 0, 1, 1, 0]]
    assert threshold_probability(probability, 0.0).tolist() == [[1, 1, 1, 1, 0]]
    assert threshold_probability(probability, 1.0).tolist() == [[0, 0, 0, 1, 0]]


def test_runs_go_down_the_columns_and_count_from_one() -> None:
    mask = np.array([[0, 1], [1, 1]], np.uint8)
    assert encode_runs(mask) == "2 3"
    np.testing.assert_array_equal(decode_runs("2 3", (2, 2)), mask)


def test_a_row_and_a_column_of_a_mask_that_is_not_square_are_told_apart() -> None:
    row, column = np.zeros((2, 3), np.uint8), np.zeros((2, 3), np.uint8)
    row[0], column[:, 0] = 1, 1
    assert encode_runs(row) == "1 1 3 1 5 1"
    assert encode_runs(column) == "1 2"


@pytest.mark.parametrize(
    ("mask", "text"),
    [
        (np.zeros((3, 5), np.uint8), ""),
        (np.ones((3, 5), np.uint8), "1 15"),
        (np.zeros((1, 1), np.uint8), ""),
        (np.ones((1, 1), np.uint8), "1 1"),
        (np.full((2, 3), 255, np.uint8), "1 6"),
        (np.array([[0, 7], [255, 0]], np.uint8), "2 2"),  # what is not 0 is change, whatever its value
        (np.ones((1, 4), np.uint8), "1 4"),
        (np.ones((4, 1), np.uint8), "1 4"),
        (np.array([[1, 0, 0, 1]], np.uint8), "1 1 4 1"),
        (np.array([[1], [0], [0], [1]], np.uint8), "1 1 4 1"),
        (np.zeros((0, 4), np.uint8), ""),
        (np.zeros((4, 0), np.uint8), ""),
    ],
)
def test_runs_of_the_extremes(mask: NDArray[np.uint8], text: str) -> None:
    assert encode_runs(mask) == text
    np.testing.assert_array_equal(decode_runs(text, mask.shape), mask != 0)


@given(MASKS)
def test_decoding_runs_restores_the_mask(mask: NDArray[np.uint8]) -> None:
    restored = decode_runs(encode_runs(mask), mask.shape)
    assert restored.dtype == np.uint8
    np.testing.assert_array_equal(restored, mask)


def write_runs_pixel_by_pixel(mask: NDArray[np.uint8]) -> str:
    """Walk down the columns one by one, as the rules of the competition say it."""
    runs: list[list[int]] = []
    previous = 0
    for position, value in enumerate((mask[row, col] for col in range(mask.shape[1]) for row in range(len(mask))), 1):
        if value and not previous:
            runs.append([position, 0])
        if value:
            runs[-1][1] += 1
        previous = value
    return " ".join(f"{start} {length}" for start, length in runs)


@given(MASKS, st.sampled_from(["plain", "turned", "stepped"]))
def test_runs_are_those_of_a_walk_down_the_columns(mask: NDArray[np.uint8], layout: str) -> None:
    mask = {"plain": mask, "turned": mask.T, "stepped": mask[::2, ::-1]}[layout]
    before = mask.copy()
    assert encode_runs(mask) == write_runs_pixel_by_pixel(mask)
    np.testing.assert_array_equal(mask, before)


@pytest.mark.parametrize("columns", [slice(0, 2), slice(1, 3), slice(3, 5), slice(0, 5)])
def test_a_run_goes_on_from_the_bottom_of_a_column_at_the_top_of_the_next(columns: slice) -> None:
    mask = np.zeros((3, 5), np.uint8)
    mask[:, columns] = 1
    mask[0, columns.start], mask[-1, columns.stop - 1] = 0, 0
    text = f"{3 * columns.start + 2} {3 * (columns.stop - columns.start) - 2}"
    assert encode_runs(mask) == text == write_runs_pixel_by_pixel(mask)


@pytest.mark.parametrize("rowcol", [(0, 0), (0, 4), (2, 0), (2, 4), (1, 3)])
def test_one_pixel_is_one_run_wherever_it_lies(rowcol: tuple[int, int]) -> None:
    mask = np.zeros((3, 5), np.uint8)
    mask[rowcol] = 1
    row, col = rowcol
    assert encode_runs(mask) == f"{3 * col + row + 1} 1"


def test_runs_of_a_large_mask_with_blobs_are_those_of_a_walk() -> None:
    rng = np.random.default_rng(0)
    mask = np.zeros((301, 407), np.uint8)
    for row, col, height, width in rng.integers([0, 0, 1, 1], [300, 400, 40, 40], (25, 4)):
        mask[row : row + height, col : col + width] = 1
    assert encode_runs(mask) == write_runs_pixel_by_pixel(mask)
    np.testing.assert_array_equal(decode_runs(encode_runs(mask), mask.shape), mask)


@given(MASKS)
def test_runs_are_maximal_and_ascend(mask: NDArray[np.uint8]) -> None:
    numbers = [int(number) for number in encode_runs(mask).split()]
    starts, lengths = numbers[::2], numbers[1::2]
    assert sum(lengths) == mask.sum()
    ends = [start + length for start, length in zip(starts, lengths, strict=True)]
    assert all(start > end for start, end in zip(starts[1:], ends[:-1], strict=True))


@pytest.mark.parametrize(
    "text",
    [
        "1",
        "1 2 3",
        "0 1",
        "-1 2",
        "1 0",
        "3 -1",
        "1 7",
        "7 1",
        "1 3 3 1",
        "4 1 1 1",
        "a b",
        "1.5 2",
        "1,2",
        "nan 1",
        "99999999999999999999 1",
        "9223372036854775807 9223372036854775807",
    ],
)
def test_damaged_runs_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        decode_runs(text, (2, 3))
