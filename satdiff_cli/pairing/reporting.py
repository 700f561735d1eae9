"""Say what became of a catalog: the tables, the manifest, the summary, and what could not be used."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from satdiff_cli import artifacts, catalog, raster
from satdiff_cli.catalog import Catalog, Scene
from satdiff_cli.compositing import Registration
from satdiff_cli.errors import CatalogError, RasterError
from satdiff_cli.pairing.building import PairingConfig, PairOutcome
from satdiff_cli.pairing.reading import STATUS_OK
from satdiff_cli.pairing.sites import assign_pair_folds, assign_sites

STATUS_FAILED = "failed"
STATUS_UNRESOLVED = "unresolved"


def tabulate_pairs(outcomes: Sequence[PairOutcome], test_ids: frozenset[str], root: Path, config: PairingConfig) -> Any:
    """Make the rows of ``pairs.csv``, sorted by pair id."""
    sites = assign_sites(outcomes)
    folds = assign_pair_folds(outcomes, sites, test_ids, config)
    rows = []
    for outcome in sorted(outcomes, key=lambda item: item.pair.pair_id):
        pair = outcome.pair
        label = f"{artifacts.COMPOSITES_DIR}/{artifacts.LABELS_DIR}/{pair.pair_id}.tif" if pair.label else ""
        rows.append(
            {
                "pair_id": pair.pair_id,
                "site_id": sites[pair.pair_id],
                "before": spell_scene(pair.before, root),
                "after": spell_scene(pair.after, root),
                "before_date": pair.before_date,
                "after_date": pair.after_date,
                "label": label if outcome.summary else "",
                "fold": folds[pair.pair_id],
                "status": STATUS_OK if outcome.summary else STATUS_FAILED,
                "reason": outcome.reason,
            }
        )
        if pair.elevation and outcome.summary:
            elevation = f"{artifacts.COMPOSITES_DIR}/{artifacts.ELEVATIONS_DIR}/{pair.pair_id}.tif"
            rows[-1][artifacts.ELEVATION_COLUMN] = elevation
    has_elevation = any(artifacts.ELEVATION_COLUMN in row for row in rows)
    columns = [*artifacts.PAIR_COLUMNS, *([artifacts.ELEVATION_COLUMN] if has_elevation else [])]
    return pd.DataFrame(rows, columns=columns)


def tabulate_report(found: Catalog, outcomes: Sequence[PairOutcome], root: Path) -> Any:
    """Make the rows of ``pairs_report.csv``: what became of every pair, row and scene, the unusable ones first."""
    rows = [
        {
            "pair_id": "",
            "source": problem.source,
            "before": problem.item,
            "status": STATUS_UNRESOLVED,
            "reason": problem.reason,
        }
        for problem in found.problems
    ]
    for outcome in sorted(outcomes, key=lambda item: (item.summary is not None, item.pair.pair_id)):
        summary = outcome.summary
        rows.append(
            {
                "pair_id": outcome.pair.pair_id,
                "source": outcome.pair.source,
                "before": spell_scene(outcome.pair.before, root),
                "after": spell_scene(outcome.pair.after, root),
                "status": STATUS_OK if summary else STATUS_FAILED,
                "reason": outcome.reason,
                "resampled": summary.resampled if summary else "",
                "valid_fraction": f"{summary.valid_fraction:.6f}" if summary else "",
                **(spell_registration(summary.registration) if summary and summary.registration else {}),
            }
        )
    return pd.DataFrame(rows, columns=list(artifacts.REPORT_COLUMNS), dtype=object).fillna("")


def spell_scene(scene: Scene, root: Path) -> str:
    """Write the files of a scene into one cell, relative to a folder where they lie below it."""
    return catalog.join_files(raster.gdal_name(artifacts.relative_path(path, root)) for path in scene)


def spell_registration(registration: Registration) -> dict[str, str]:
    """Write how the after date lay against the before date into the cells of a report."""
    estimate = registration.estimate
    return {
        "shift_dy": f"{estimate.dy:.3f}",
        "shift_dx": f"{estimate.dx:.3f}",
        "shift_spread": f"{estimate.spread:.3f}",
        "shift_reliability": f"{estimate.reliability:.3f}",
        "coregistration": registration.reason or f"corrected ({registration.correction})",
    }


def raise_for_problems(found: Catalog, root: Path) -> None:
    """Refuse a catalog of which rows or scenes could not be used, before anything is built; write the report.

    Raises:
        CatalogError: There are such rows or scenes; the first three reasons are given.
    """
    if not found.problems:
        return
    report = root / artifacts.PAIRS_REPORT_CSV
    artifacts.write_table(report, tabulate_report(found, [], root))
    reasons = [f"{item.source}: {item.item}: {item.reason}" for item in found.problems]
    raise CatalogError(
        f"{len(reasons)} rows or scenes cannot be used:{list_reasons(reasons)}",
        f"see {report}; mend them, or leave them out with --allow-missing",
    )


def raise_for_failures(outcomes: Sequence[PairOutcome], report: Path) -> None:
    """Refuse a dataset of which some pairs could not be built.

    Raises:
        RasterError: There are such pairs; the first three reasons are given.
    """
    failed = [outcome for outcome in outcomes if outcome.summary is None]
    if not failed:
        return
    hint = failed[0].hint if len(failed) == 1 else f"see {report}; mend them"
    raise RasterError(
        f"{len(failed)} of {len(outcomes)} pairs failed:"
        + list_reasons([f"{item.pair.pair_id}: {item.reason}" for item in failed]),
        f"{hint}; or leave out what cannot be used with --allow-missing",
    )


def list_reasons(reasons: Sequence[str], most: int = 3) -> str:
    """List the first reasons of a message, a line each."""
    listed = "".join(f"\n  - {reason}" for reason in reasons[:most])
    return listed + (f"\n  and {len(reasons) - most} more" if len(reasons) > most else "")


def describe_composites(outcomes: Sequence[PairOutcome], root: Path, config: PairingConfig) -> artifacts.Manifest:
    """Describe the composites and the scenes and labels that they were made of."""
    used = [outcome.pair for outcome in outcomes if outcome.summary]
    files = {path for pair in used for path in (pair.composite, pair.label, pair.after_label, pair.elevation) if path}
    files |= {path for pair in used if not pair.composite for path in (*pair.before, *pair.after)}
    local = sorted(path for path in files if path.is_file())
    return artifacts.Manifest(
        "composites",
        config=asdict(config),
        inputs=artifacts.describe_inputs(local, root),
        seed=config.seed,
        details={"pairs": len(used)},
    )


def summarize_pairs(found: Catalog, outcomes: Sequence[PairOutcome], rows: pd.DataFrame) -> dict[str, Any]:
    """Count what became of a catalog, for the terminal and ``--json``."""
    used = rows[rows["status"] == STATUS_OK]
    summaries = [outcome.summary for outcome in outcomes if outcome.summary]
    registrations = [summary.registration for summary in summaries if summary.registration]
    return {
        "format": found.format,
        "pairs": len(used),
        "sites": used["site_id"].nunique(),
        "labelled": int((used["label"] != "").sum()),
        "test": int((used["fold"] == catalog.TEST_FOLD).sum()),
        "resampled": sum(bool(summary.resampled) for summary in summaries),
        "shifts": len(registrations),
        "coregistered": sum(item.correction != "none" for item in registrations),
        "not_coregistered": sum(item.is_trouble for item in registrations),
        "failed": len(outcomes) - len(used),
        "problems": len(found.problems),
        "bands": "; ".join(sorted({",".join(summary.bands) for summary in summaries})),
    }
