"""Find predictions by path, by name, or by age."""

from collections.abc import Iterable
from pathlib import Path

from satdiff_cli import artifacts
from satdiff_cli.errors import ArtifactError

ENSEMBLE = "ensemble"


def resolve_prediction(given: Path | None, data: Path, *, out_of_fold: bool | None = None) -> Path:
    """Find a prediction by path or by name; without one the newest.

    ``ensemble.pkl`` in the current folder counts, too: that is where ``satdiff ensemble a.pkl b.pkl`` writes it.

    Args:
        given: A path, or a name below ``predicted_masks``.
        data: The project folder.
        out_of_fold: Whether the newest is looked for among the out-of-fold ones (True), the others (False) or all.

    Raises:
        ArtifactError: There is no such prediction.
    """
    folder = data / artifacts.PREDICTIONS_DIR
    if given is not None:
        candidates = (given, folder / given, folder / f"{given}.pkl")
        # A project folder may have the name of a prediction: the one that is a prediction is meant.
        for is_there in (is_prediction_path, Path.exists):
            for candidate in candidates:
                if is_there(candidate):
                    return candidate
        raise ArtifactError(f"there is no prediction {given}, neither here nor in {folder}", "satdiff predict")
    found = [
        path
        for path in sort_by_age([*list_predictions(folder), *Path().glob(f"{ENSEMBLE}.pkl")])
        if out_of_fold is None or path.name.startswith(artifacts.OUT_OF_FOLD_PREFIX) == out_of_fold
    ]
    if not found:
        raise ArtifactError(f"{folder} holds no prediction", "make one with: satdiff predict")
    return found[0]


def list_predictions(folder: Path) -> list[Path]:
    """List the predictions below ``predicted_masks``, the newest first; a pickle stands for its folder."""
    pickles = [path for path in folder.glob("*.pkl") if not path.name.startswith(".")]
    folders = [
        path.parent for path in folder.glob(f"*/{artifacts.MANIFEST_NAME}") if not path.parent.name.startswith(".")
    ]
    lone = [path for path in folders if not path.with_name(f"{path.name}.pkl").exists()]
    return sort_by_age([*pickles, *lone])


def sort_by_age(paths: Iterable[Path]) -> list[Path]:
    """Sort files and folders, the newest first."""
    return sorted(paths, key=lambda path: (path.stat().st_mtime_ns, path.name), reverse=True)


def is_prediction_path(path: Path) -> bool:
    """Whether a path may hold a prediction: a file, or a folder with a manifest."""
    return path.is_file() or (path / artifacts.MANIFEST_NAME).is_file()
