"""Measure how the after date lies against the before date, and decide whether to correct it."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from satdiff_cli.compositing.alignment import Aligned, Displacement
from satdiff_cli.compositing.scenes import JoinedBands
from satdiff_cli.config import Coregister
from satdiff_cli.coregistration import CoregistrationConfig, ShiftEstimate, estimate_shift
from satdiff_cli.errors import RasterError
from satdiff_cli.windows import Window


@dataclass(frozen=True)
class Registration:
    """Say how the after date lay against the before date, and what was done about it.

    Attributes:
        estimate: The measured shift [px of the composite].
        correction: How the after date was corrected; ``none`` where it was left as it is.
        reason: Why it was left as it is; empty where it was corrected.
        is_trouble: Whether that is a reason to look at the pair.
    """

    estimate: ShiftEstimate
    correction: Coregister
    reason: str = ""
    is_trouble: bool = False

    @property
    def displacement(self) -> Displacement:
        """What to align the after files with."""
        if self.correction == "local" and self.estimate.field is not None:
            return self.estimate.field
        return (self.estimate.dy, self.estimate.dx) if self.correction != "none" else (0.0, 0.0)

    def describe(self) -> str:
        """Say it in a line."""
        estimate = self.estimate
        found = f"shift {estimate.dy:+.2f}, {estimate.dx:+.2f} px (down, right)"
        return f"{found}: {self.reason}" if self.reason else f"{found}, corrected ({self.correction})"

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for a report."""
        estimate = self.estimate
        return {
            "dy": estimate.dy,
            "dx": estimate.dx,
            "spread": estimate.spread,
            "reliability": estimate.reliability,
            "windows": estimate.probes,
            "correction": self.correction,
            "reason": self.reason,
        }


def register(both: Aligned, joined: JoinedBands, config: CoregistrationConfig) -> Registration:
    """Measure the shift of the after date on the bands of the finest before file, and decide what to do about it.

    Args:
        both: The files of both dates, before first, as they lie.
        joined: Which of their bands are which.
        config: How far a shift is sought, and how it is corrected.
    """
    window = both.window
    finest = both.files[joined.reference]
    first = sum(len(file.indexes) for file in both.files[: joined.reference])
    after_places = [
        len(joined.names) + joined.after_order[place] for place in range(first, first + len(finest.indexes))
    ]

    def read(part: Window) -> tuple[NDArray[Any], NDArray[Any], NDArray[np.bool_]]:
        source = replace(part, row=part.row + window.row, col=part.col + window.col)
        return finest.read(source), read_bands(both, after_places, source), both.valid[source.slices]

    return decide(estimate_shift(read, (window.height, window.width), config), config)


def read_bands(aligned: Aligned, places: list[int], window: Window) -> NDArray[Any]:
    """Read some bands of aligned files, counted over all of them, in the order asked for."""
    parts: dict[int, NDArray[Any]] = {}
    first = 0
    for file in aligned.files:
        own = {place: file.indexes[place - first] for place in places if 0 <= place - first < len(file.indexes)}
        first += len(file.indexes)
        if own:
            pixels = replace(file, indexes=list(own.values())).read(window)
            parts.update(zip(own, pixels, strict=True))
    return np.stack([parts[place] for place in places])


def decide(estimate: ShiftEstimate, config: CoregistrationConfig) -> Registration:
    """Decide from a measured shift whether the after date is corrected."""
    field = estimate.field
    largest = estimate.distance if field is None else float(np.hypot(*field.shifts).max())
    if not estimate.is_reliable:
        return Registration(estimate, "none", "not corrected, as the dates resemble each other too little", True)
    if largest > config.max_shift:
        return Registration(estimate, "none", f"not corrected, as it is above {config.max_shift:g} px", True)
    if config.mode == "none":
        return Registration(estimate, "none", "not corrected, as asked")
    if largest < config.min_shift:
        return Registration(estimate, "none", f"below {config.min_shift:g} px, nothing to correct")
    return Registration(estimate, "global" if field is None else "local")


def raise_for_trouble(registration: Registration, names: str) -> None:
    """Refuse a pair whose shift is too large or cannot be told.

    Raises:
        RasterError: It is.
    """
    if registration.is_trouble:
        raise RasterError(
            f"{names}: {registration.describe()}",
            "look at both scenes; --max-shift admits larger shifts, and without --strict the pair stays as it is",
        )
