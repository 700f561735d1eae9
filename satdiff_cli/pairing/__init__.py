"""Turn a catalog into composites, labels on their grid, sites and folds; read the resulting pairs back."""

from satdiff_cli.pairing.building import PairingConfig, build_composites, read_date
from satdiff_cli.pairing.cataloguing import check_task, read_catalog, refuse_own_output
from satdiff_cli.pairing.labels import LabelValues, find_change_value, read_label
from satdiff_cli.pairing.reading import Pair, read_pairs
from satdiff_cli.pairing.reporting import (
    describe_composites,
    raise_for_failures,
    raise_for_problems,
    summarize_pairs,
    tabulate_pairs,
    tabulate_report,
)

__all__ = [
    "LabelValues",
    "Pair",
    "PairingConfig",
    "build_composites",
    "check_task",
    "describe_composites",
    "find_change_value",
    "raise_for_failures",
    "raise_for_problems",
    "read_catalog",
    "read_date",
    "read_label",
    "read_pairs",
    "refuse_own_output",
    "summarize_pairs",
    "tabulate_pairs",
    "tabulate_report",
]
