"""Read the pairs of a project folder."""

from dataclasses import dataclass
from pathlib import Path

from satdiff_cli import artifacts
from satdiff_cli.errors import ArtifactError

STATUS_OK = "ok"


@dataclass(frozen=True)
class Pair:
    """One usable row of ``pairs.csv``, its paths resolved.

    ``label`` is 0/1/255, or class ids and 255, on the composite's grid, or None. ``fold`` is a number, ``train``,
    ``val``, ``test`` or empty. ``elevation`` is in metres on that grid, NaN where not measured, or None.
    """

    pair_id: str
    site_id: str
    composite: Path
    label: Path | None
    fold: str
    before_date: str
    after_date: str
    elevation: Path | None = None
    dates: int = 2


def read_pairs(data: Path) -> list[Pair]:
    """Read the usable pairs of a project folder, in the order of ``pairs.csv``.

    Raises:
        ArtifactError: There is no ``pairs.csv`` or no composites, or none of its pairs is usable.
    """
    table = artifacts.read_table(data / artifacts.PAIRS_CSV, artifacts.PAIR_COLUMNS)
    composites = data / artifacts.COMPOSITES_DIR
    artifacts.read_manifest(composites, "composites")
    table = table[table["status"] == STATUS_OK]
    if table.empty:
        raise ArtifactError(f"{data / artifacts.PAIRS_CSV} holds no usable pair", "see pairs_report.csv beside it")
    on_disk = {path.stem for path in composites.glob("*.tif")}
    artifacts.check_keys(
        on_disk, table["pair_id"], what=f"{composites} against {artifacts.PAIRS_CSV}", hint="satdiff pair --overwrite"
    )
    has_classes = (composites / artifacts.CLASSES_CSV).is_file()
    return [
        Pair(
            pair_id=row["pair_id"],
            site_id=row["site_id"],
            composite=composites / f"{row['pair_id']}.tif",
            label=data / row["label"] if row["label"] else None,
            fold=row["fold"],
            before_date=row["before_date"],
            after_date=row["after_date"],
            elevation=data / row[artifacts.ELEVATION_COLUMN] if row.get(artifacts.ELEVATION_COLUMN) else None,
            dates=1 if has_classes and not row["after"] else 2,
        )
        for row in table.to_dict("records")
    ]
