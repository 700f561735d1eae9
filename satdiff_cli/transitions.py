"""Change from one class of land cover to another, from the probabilities of both dates. Pure."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from satdiff_cli.catalog import LandClass

UNCHANGED = 0  # the code of the first class to itself, which is no change
ARROW = " → "


def find_change(before: NDArray[np.float32], after: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the probability that the class of a pixel is another one at the after date.

    The errors of the two dates are taken to be independent of each other, given the two classes. Then the classes are
    the same with the weight S = Σ_k before(k) · after(k) and others with D = 1 - S. Of two maps that know nothing,
    D is 1 - 1/K, only because more pairs of classes differ (K² - K) than agree (K). So beforehand change and no change
    are given equal odds, shared evenly among their pairs (Bayes' rule): P = D / (D + (K - 1) S). That is D itself for
    two classes, 1/2 where a date knows nothing, 0 for two certain maps that agree and 1 for two that do not; it rises
    with D everywhere, so that other odds are another threshold.

    Args:
        before: Probabilities of the classes at the before date (K, …), NaN where not valid.
        after: Those of the after date.

    Returns:
        float32 (…) in [0, 1], NaN where not valid.
    """
    same = np.einsum("k...,k...->...", before, after)
    other = np.maximum(before.sum(axis=0) * after.sum(axis=0) - same, 0)  # stored probabilities are rounded
    probability: NDArray[np.float32] = other / (other + (len(before) - 1) * same)
    return probability


def find_transitions(before: NDArray[np.float32], after: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Find the most probable pair of different classes, as codes (…), under before(i) · after(j).

    Where both dates have the same best class, one of them has its second best one: the likelier of the two.

    Args:
        before: Probabilities of the classes at the before date (K, …).
        after: Those of the after date.
    """
    (source, source_next), (target, target_next) = map(find_two_best, (before, after))
    takes_source = _pick(before, source_next) * _pick(after, target) > _pick(before, source) * _pick(after, target_next)
    is_same = source == target
    first = np.where(is_same & takes_source, source_next, source)
    second = np.where(is_same & ~takes_source, target_next, target)
    return encode_transition(first, second, len(before))


def find_two_best(probability: NDArray[np.float32]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Find the most probable class of each pixel (K, …) and the next one."""
    best = np.argmax(probability, axis=0)
    rest = probability.copy()
    np.put_along_axis(rest, best[None], -1, axis=0)
    return best, np.argmax(rest, axis=0)


def _pick(values: NDArray[np.float32], at: NDArray[np.intp]) -> NDArray[np.float32]:
    return np.take_along_axis(values, at[None], axis=0)[0]


def encode_transition(source: NDArray[np.integer], target: NDArray[np.integer], classes: int) -> NDArray[np.uint16]:
    """Write a class before and a class after as one number, before · K + after."""
    return (source.astype(np.int64) * classes + target).astype(np.uint16)


def choose_dtype(classes: int) -> np.dtype[np.unsignedinteger]:
    """Choose the type of a map of codes; its highest value stands for not valid."""
    return np.dtype(np.uint8 if classes**2 < np.iinfo(np.uint8).max else np.uint16)


def list_transitions(classes: Sequence[LandClass]) -> tuple[LandClass, ...]:
    """List what each code of a map means, with a colour: that of the class after, tinged with that of the one before.

    Codes of a class to itself do not occur, but for 0: no change.
    """
    listed: list[LandClass] = []
    for first in classes:
        for second in classes:
            red, green, blue = ((a + 2 * b) // 3 for a, b in zip(first.colour, second.colour, strict=True))
            name = f"{first.name}{ARROW}{second.name}" if first != second else ""
            listed.append(LandClass(len(listed), name, (red, green, blue)))
    return (LandClass(UNCHANGED, "no change", (255, 255, 255)), *listed[1:])
