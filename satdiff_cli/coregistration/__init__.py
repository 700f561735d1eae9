"""Find the shift between two dates of a place: probe windows, correlation, robust consensus. Pure.

A shift (dy, dx) [px of the before grid] says that ground seen at (row, col) of the before scene is seen at
(row + dy, col + dx) of the after scene. The after scene is corrected by sampling it there.
"""

from satdiff_cli.coregistration.estimating import CoregistrationConfig, ShiftEstimate, estimate_shift
from satdiff_cli.coregistration.fields import ShiftField
from satdiff_cli.coregistration.probes import ReadPair

__all__ = [
    "CoregistrationConfig",
    "ReadPair",
    "ShiftEstimate",
    "ShiftField",
    "estimate_shift",
]
