"""Which label-free methods there are, and which suits a pair."""

from satdiff_cli.plugins import list_plugins

AUTO = "auto"


def list_methods() -> list[str]:
    """Name the detectors as the command line does, ``auto`` first."""
    return [AUTO, *(name.replace("_", "-") for name in list_plugins("detectors"))]


def plugin_name(method: str) -> str:
    """Return the name of a detector's file."""
    return method.replace("-", "_")


def choose_method(bands: int) -> tuple[str, str]:
    """Choose a method by the bands of a date.

    One band says nothing about colour, so only its surroundings can tell change from noise: ``pca-kmeans``. Two or more
    bands are related from date to date by light, season and sensor, which ``irmad`` finds and takes away.

    Returns:
        The method, and why.
    """
    if bands == 1:
        return "pca-kmeans", "a single band: change is told from noise by the pixels around"
    return "irmad", f"{bands} bands: what relates them between the dates is no change"
