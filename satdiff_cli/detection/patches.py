"""What label-free detectors are made for: parts of a normalised pair, and the model that one returns."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

# Windows that are scored begin at multiples of this [px]: networks that halve their input several times see the same
# grid in each, if their margin is a multiple of what they shrink it by.
WINDOW_STEP_PX = 128


@dataclass(frozen=True)
class Patch:
    """Hold a part of a normalised pair.

    Attributes:
        before: float32 (bands, H, W); 0, the mean, where not valid.
        after: The same of the after date.
        valid: bool (H, W).
        inner: Rows and columns without the margin that is there for the neighbourhood alone.
    """

    before: NDArray[np.float32]
    after: NDArray[np.float32]
    valid: NDArray[np.bool_]
    inner: tuple[slice, slice]

    @property
    def scored(self) -> NDArray[np.bool_]:
        """Pixels that count, bool (H, W): valid, and not in the margin."""
        scored = np.zeros_like(self.valid)
        scored[self.inner] = self.valid[self.inner]
        return scored

    def pixels(self) -> NDArray[np.float32]:
        """Return the pixels that count, (2 * bands, n), before bands first."""
        scored = self.scored
        return np.concatenate([self.before[:, scored], self.after[:, scored]])


@dataclass(frozen=True)
class Sample:
    """Hold what a detector may learn from.

    Attributes:
        patches: Parts of the pair, evenly spread over it, at least one pixel of them valid.
        bands: Names of the bands of a date.
        seed: Of what is drawn at random.
    """

    patches: Sequence[Patch]
    bands: tuple[str, ...]
    seed: int

    def pixels(self) -> NDArray[np.float32]:
        """Return the pixels that count, (2 * bands, n), before bands first."""
        return np.concatenate([patch.pixels() for patch in self.patches], axis=1)


class ChangeModel(Protocol):
    """Score change, after a detector has seen a sample of the pair."""

    def score(self, patch: Patch) -> NDArray[np.float32]:
        """Return a change score, finite and 0 or more (H, W), that grows with change.

        It may depend on pixels as far away as the detector's ``MARGIN_PX``, not further, so that it is the same
        whatever the windows.
        """
