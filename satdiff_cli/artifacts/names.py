"""Names of the files and folders that the steps hand on, their columns, and what makes them."""

from typing import Literal

Kind = Literal["composites", "run", "prediction", "export", "change map", "demo"]
SCHEMA_VERSION = 1
MANIFEST_NAME = "manifest.json"
FOLDER_MARKS = (MANIFEST_NAME, "model.json")  # one of them lies in every folder that satdiff may replace
PAIRS_CSV = "pairs.csv"
PAIRS_REPORT_CSV = "pairs_report.csv"
TILES_CSV = "tiles.csv"
TRIALS_CSV = "trials.csv"
CLASSES_CSV = "classes.csv"
COMPOSITES_DIR = "composites"
LABELS_DIR = "labels"
ELEVATIONS_DIR = "elevations"
PREDICTIONS_DIR = "predicted_masks"
SAMPLE_SUBMISSION_CSV = "sample_submission.csv"
OUT_OF_FOLD_PREFIX = "oof_"
PAIR_COLUMNS = (
    "pair_id",
    "site_id",
    "before",
    "after",
    "before_date",
    "after_date",
    "label",
    "fold",
    "status",
    "reason",
)
REPORT_COLUMNS = (
    "pair_id",
    "source",
    "before",
    "after",
    "status",
    "reason",
    "resampled",
    "valid_fraction",
    "shift_dy",
    "shift_dx",
    "shift_spread",
    "shift_reliability",
    "coregistration",
)
ELEVATION_COLUMN = "elevation"  # of pairs.csv, only where some scene has one
CLASS_COLUMNS = ("id", "name", "red", "green", "blue")
TRIAL_COLUMNS = ("trial", "state", "seconds", "run", "reason")  # and the score and settings of each sweep
TILE_COLUMNS = (
    "tile_id",
    "pair_id",
    "row",
    "col",
    "height",
    "width",
    "fold",
    "valid_fraction",
    "change_fraction",
)
MAKERS = {
    "composites": "satdiff pair DATA",
    "run": "satdiff train",
    "prediction": "satdiff predict",
    "export": "satdiff export",
    "change map": "satdiff detect BEFORE AFTER",
    "demo": "satdiff demo",
    PAIRS_CSV: "satdiff pair DATA",
    TILES_CSV: "satdiff tile DATA",
    CLASSES_CSV: "satdiff pair DATA",
}
