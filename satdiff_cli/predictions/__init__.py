"""Predictions: a folder of probability rasters, and a pickle of one frame a pair beside it."""

from satdiff_cli.predictions.finding import ENSEMBLE, list_predictions, resolve_prediction
from satdiff_cli.predictions.header import ORIGINAL_THRESHOLD, ExportOptions, PredictionHeader, Target, choose_threshold
from satdiff_cli.predictions.reading import FolderReader, PredictionReader, open_prediction
from satdiff_cli.predictions.writing import PredictionWriter, resume_prediction, write_frame, write_prediction

__all__ = [
    "ENSEMBLE",
    "ORIGINAL_THRESHOLD",
    "ExportOptions",
    "FolderReader",
    "PredictionHeader",
    "PredictionReader",
    "PredictionWriter",
    "Target",
    "choose_threshold",
    "list_predictions",
    "open_prediction",
    "resolve_prediction",
    "resume_prediction",
    "write_frame",
    "write_prediction",
]
