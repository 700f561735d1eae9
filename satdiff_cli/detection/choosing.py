"""Which label-free methods there are, and which suits a pair."""

from satdiff_cli.plugins import list_plugins

AUTO = "auto"
_MANY_BANDS = 4
_PIXELS_PER_ENTRY = 20


def list_methods() -> list[str]:
    """Name the detectors as the command line does, ``auto`` first."""
    return [AUTO, *(name.replace("_", "-") for name in list_plugins("detectors"))]


def plugin_name(method: str) -> str:
    """Return the name of a detector's file."""
    return method.replace("-", "_")


def choose_method(bands: int, valid_px: int) -> tuple[str, str]:
    """Choose a method by the bands of a date and by how many pixels there are to learn from.

    Four or more bands reach beyond what the eye sees, and season, light and sensor change them together: ``irmad``
    finds what relates them between the dates and takes it away. It estimates a covariance of both dates' bands, for
    which it needs 20 valid pixels for each entry; with less, ``cva`` compares band by band. One band, or red, green and
    blue, which are nearly one, say little about a pixel by itself: ``pca-kmeans`` looks at those around it as well.

    Args:
        bands: Bands of a date.
        valid_px: Valid pixels of the pair.

    Returns:
        The method, and why.
    """
    needed_px = _PIXELS_PER_ENTRY * (2 * bands) ** 2
    if bands < _MANY_BANDS:
        return "pca-kmeans", f"{bands} bands say little of a pixel without those around it"
    if valid_px < needed_px:
        return "cva", f"{valid_px} of at least {needed_px} valid pixels are too few to relate {bands} bands"
    return "irmad", f"with {bands} bands, what relates them between the dates can be told from change"
