"""Spread pairs over folds, so that what shares ground shares a fold."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from satdiff_cli import catalog, raster
from satdiff_cli.compositing import CompositeSummary
from satdiff_cli.pairing.building import PairingConfig, PairOutcome


def assign_sites(outcomes: Sequence[PairOutcome]) -> dict[str, str]:
    """Give pairs that share a scene, a site name, or ground the same site.

    Returns:
        For each pair id its site.
    """
    members: dict[str, list[Any]] = {}
    for outcome in outcomes:
        pair = outcome.pair
        members[pair.pair_id] = [("site", pair.site_id)]
        if pair.composite is None:
            members[pair.pair_id] += [*pair.before, *pair.after]
    for first, second in find_overlaps([(item.pair.pair_id, item.summary) for item in outcomes if item.summary]):
        members[first].append(("overlap", first, second))
        members[second].append(("overlap", first, second))
    groups = catalog.merge_groups(members)
    names = {outcome.pair.pair_id: outcome.pair.site_id for outcome in outcomes}
    return {pair_id: names[group] for pair_id, group in groups.items()}


def find_overlaps(summaries: Sequence[tuple[str, CompositeSummary]]) -> list[tuple[str, str]]:
    """Find the pairs of composites whose ground overlaps by more than a pixel; only georeferenced ones can.

    Bounds are compared in the composites' own coordinate system where it is the same, else as longitudes and
    latitudes, whose boxes may overlap a little where the ground does not.
    """
    placed = [(pair_id, summary.grid) for pair_id, summary in summaries if summary.grid.is_georeferenced]
    if not placed:
        return []
    native = np.array([raster.native_bounds(grid) for _, grid in placed])
    geographic = np.array([raster.geographic_bounds(grid) for _, grid in placed])
    systems = np.array([grid.crs for _, grid in placed])
    widths = np.array([grid.width for _, grid in placed])
    overlaps = []
    for index in range(len(placed) - 1):
        is_same = (systems[index + 1 :] == systems[index])[:, None]
        own = np.where(is_same, native[index], geographic[index])
        rest = np.where(is_same, native[index + 1 :], geographic[index + 1 :])
        pixel = np.maximum((own[:, 2] - own[:, 0]) / widths[index], (rest[:, 2] - rest[:, 0]) / widths[index + 1 :])
        across = np.minimum(own[:, 2], rest[:, 2]) - np.maximum(own[:, 0], rest[:, 0])
        along = np.minimum(own[:, 3], rest[:, 3]) - np.maximum(own[:, 1], rest[:, 1])
        hits = np.flatnonzero((across > pixel) & (along > pixel))
        overlaps += [(placed[index][0], placed[index + 1 + hit][0]) for hit in hits.tolist()]
    return overlaps


def assign_pair_folds(
    outcomes: Sequence[PairOutcome], sites: dict[str, str], test_ids: frozenset[str], config: PairingConfig
) -> dict[str, str]:
    """Give each pair its fold: the dataset's own, else by site; unlabelled pairs are the test set.

    With a sample submission only the unlabelled pairs that it lists are the test set.
    """
    folds = {}
    to_spread = [item.pair for item in outcomes if item.summary and item.pair.label and not item.pair.fold]
    by_site = catalog.assign_folds([sites[pair.pair_id] for pair in to_spread], folds=config.folds, seed=config.seed)
    spread_ids = {pair.pair_id for pair in to_spread}
    for pair in (item.pair for item in outcomes):
        if pair.fold:
            folds[pair.pair_id] = pair.fold
        elif pair.pair_id in spread_ids:
            folds[pair.pair_id] = by_site[sites[pair.pair_id]]
        else:
            is_test = pair.label is None and (not test_ids or pair.pair_id in test_ids)
            folds[pair.pair_id] = catalog.TEST_FOLD if is_test else catalog.NO_FOLD
    return folds
