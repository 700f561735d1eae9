"""Two files in, a change map out: co-registration, detection or a trained network, mask, polygons, picture, report."""

from satdiff_cli.mapping.making import (
    PROBABILITY_NAME,
    REPORT_NAME,
    MapConfig,
    describe_map,
    make_change_map,
    parse_scene,
)
from satdiff_cli.mapping.reporting import summarize_report

__all__ = [
    "PROBABILITY_NAME",
    "REPORT_NAME",
    "MapConfig",
    "describe_map",
    "make_change_map",
    "parse_scene",
    "summarize_report",
]
