"""Store probabilities as integers, threshold them, and write masks as run lengths; each beside its inverse. Pure."""

import numpy as np
from numpy.typing import NDArray

PROBABILITY_STEPS = 65534
PROBABILITY_SCALE = 1.0 / PROBABILITY_STEPS
PROBABILITY_NODATA = 65535
PROBABILITY_NBYTES = 2  # of an encoded one
LABEL_IGNORE = 255


def encode_probability(probability: NDArray[np.floating]) -> NDArray[np.uint16]:
    """Store a probability in [0, 1] as 0 … 65534; NaN (not valid) becomes 65535.

    Raises:
        ValueError: A value lies outside [0, 1], where it would wrap around.
    """
    is_nan = np.isnan(probability)
    if np.any((probability < 0) | (probability > 1)):
        raise ValueError("a probability outside [0, 1] cannot be stored")
    steps = np.rint(np.where(is_nan, 0, probability).astype(np.float64) * PROBABILITY_STEPS)
    return np.where(is_nan, PROBABILITY_NODATA, steps).astype(np.uint16)


def decode_probability(encoded: NDArray[np.uint16]) -> NDArray[np.float32]:
    """Undo ``encode_probability`` to within half a step of 1/65534; 65535 becomes NaN."""
    probability = encoded.astype(np.float32) * np.float32(PROBABILITY_SCALE)
    probability[encoded == PROBABILITY_NODATA] = np.nan
    return np.minimum(probability, np.float32(1))  # the float32 scale can overshoot 1 by one ulp


def threshold_probability(probability: NDArray[np.floating], threshold: float) -> NDArray[np.uint8]:
    """Turn a probability into a mask: 1 where it reaches the threshold, else 0; NaN is 0."""
    return (probability >= threshold).astype(np.uint8)


def find_classes(probability: NDArray[np.floating], groups: int = 1) -> NDArray[np.uint8]:
    """Find the most probable class of each pixel, the first of equals.

    Args:
        probability: (groups * K, H, W), NaN where not valid.
        groups: Groups of classes that exclude each other.

    Returns:
        uint8 (groups, H, W): ids in each group, 255 where not valid.
    """
    by_group = probability.reshape(groups, -1, *probability.shape[1:])
    is_invalid = np.isnan(by_group[:, 0])
    found = np.argmax(np.where(is_invalid[:, None], 0, by_group), axis=1).astype(np.uint8)
    found[is_invalid] = LABEL_IGNORE
    return found


def encode_runs(mask: NDArray[np.uint8]) -> str:
    """Write a 0/1 mask (H, W) as run lengths: column by column, starts counted from 1, empty for no change.

    ``[[0, 1], [1, 1]]`` read down the columns is 0 1 1 1: one run that starts at pixel 2 and is 3 long, ``"2 3"``.
    """
    if mask.size == 0:
        return ""
    height, width = mask.shape
    is_set = mask != 0
    # An edge is a pixel that differs from the one before it down the columns. Whole rows are compared as they lie in
    # memory and only the edges, few in a map of change, are put into column order: nothing is transposed.
    rows, cols = np.divmod(np.flatnonzero(is_set[1:] != is_set[:-1]), width)
    before_top = np.concatenate([[False], is_set[-1, :-1]])  # above a column's top lies the bottom of the one before
    tops = np.flatnonzero(is_set[0] != before_top)
    end = [mask.size] if is_set[-1, -1] else []  # a run that reaches the last pixel ends behind it
    edges = np.sort(np.concatenate([cols * height + rows + 1, tops * height, np.array(end, dtype=np.intp)]))
    runs = np.stack([edges[::2] + 1, edges[1::2] - edges[::2]], axis=1)
    return " ".join(map(str, runs.ravel().tolist()))


def decode_runs(text: str, shape: tuple[int, int]) -> NDArray[np.uint8]:
    """Undo ``encode_runs`` for a mask of the given shape (H, W).

    Raises:
        ValueError: The text is no list of pairs, or a run lies outside the mask or overlaps the one before.
    """
    numbers = [int(word) for word in text.split()]
    if len(numbers) % 2:
        raise ValueError("run lengths come in pairs of start and length")
    height, width = shape
    flat = np.zeros(height * width, dtype=np.uint8)
    position = 0
    for start, length in zip(numbers[::2], numbers[1::2], strict=True):
        if start <= position or length < 1 or start - 1 + length > flat.size:
            raise ValueError(f"run '{start} {length}' does not fit a mask of {height} × {width} px")
        flat[start - 1 : start - 1 + length] = 1
        position = start - 1 + length
    return flat.reshape(width, height).T
