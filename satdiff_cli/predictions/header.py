"""What is known of a prediction: its pairs, classes, threshold and grids, and where it lies."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from satdiff_cli.catalog import LandClass
from satdiff_cli.config import Task
from satdiff_cli.raster import Grid

if TYPE_CHECKING:
    from satdiff_cli.changes import PolygonOptions

PICKLE_FORMAT = "satdiff-prediction"
PICKLE_VERSION = 1
ORIGINAL_THRESHOLD = 0.4  # what the original solution cut its bare lists at


@dataclass(frozen=True)
class PredictionHeader:
    """Describe a prediction; the first frame of its pickle.

    Attributes:
        pair_ids: Ids of the pairs, in the order of the frames.
        run: Name of what made it.
        threshold: Probability from which a pixel counts as change; None where the file does not say.
        grids: For each pair its grid as ``Grid.as_dict`` gives it; empty where the file does not say.
        task: What is mapped.
        classes: Classes of land cover, whose probabilities the bands are, by date where each has its own.
    """

    pair_ids: tuple[str, ...]
    run: str = ""
    threshold: float | None = None
    grids: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    task: Task = "change"
    classes: tuple[LandClass, ...] = ()

    @property
    def groups(self) -> int:
        """Groups of classes that exclude each other: one, or one a date."""
        return 2 if self.task == "semantic-change" else 1

    @property
    def band_names(self) -> list[str]:
        """Names of the bands of each raster."""
        if not self.classes:
            return ["probability of change"]
        dates = ("before: ", "after: ") if self.groups == 2 else ("",)
        return [f"probability of {date}{item.name}" for date in dates for item in self.classes]

    def grid(self, pair_id: str, shape: tuple[int, ...]) -> Grid:
        """Return the grid of a pair; one without georeferencing where the prediction does not say."""
        known = self.grids.get(pair_id)
        return Grid.from_dict(known) if known else Grid(shape[0], shape[1])

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, with the format's name and version."""
        return {"format": PICKLE_FORMAT, "version": PICKLE_VERSION, **self.facts()}

    def facts(self) -> dict[str, Any]:
        """Return plain values; of change without task and classes."""
        values = asdict(self) | {"pair_ids": list(self.pair_ids), "grids": dict(self.grids)}
        if self.classes:
            described = [{**values, "colour": list(values["colour"])} for values in map(asdict, self.classes)]
            return values | {"classes": described}
        return {name: value for name, value in values.items() if name not in {"task", "classes"}}

    @classmethod
    def from_facts(cls, values: Mapping[str, Any]) -> Self:
        """Undo ``facts``."""
        classes = tuple(
            LandClass(int(item["id"]), str(item["name"]), tuple(item["colour"])) for item in values.get("classes", ())
        )
        return cls(
            tuple(map(str, values["pair_ids"])),
            str(values["run"]),
            values["threshold"],
            values.get("grids", {}),
            values.get("task", "change"),
            classes,
        )


@dataclass(frozen=True)
class Target:
    """Say where a prediction goes: its folder, whether ``<folder>.pkl`` beside it, whether to replace what is there."""

    folder: Path
    with_pickle: bool = True
    overwrite: bool = False

    @classmethod
    def at(cls, path: Path, *, with_pickle: bool = True, overwrite: bool = False) -> Self:
        """Make the target of a folder's or a pickle's path."""
        return cls(path.with_suffix("") if path.suffix == ".pkl" else path, with_pickle, overwrite)

    @property
    def pickle(self) -> Path:
        """The pickle's path."""
        return self.folder.with_name(f"{self.folder.name}.pkl")


@dataclass(frozen=True)
class ExportOptions:
    """Say what an output plug-in may need beside the prediction; it writes into a folder that is new and empty.

    Attributes:
        data: The project folder with composites and labels.
        threshold: Probability from which a pixel counts as change.
        polygons: Which polygons are written, and how; None for the defaults.
    """

    data: Path
    threshold: float
    polygons: "PolygonOptions | None" = None


def choose_threshold(given: float | None, header: PredictionHeader) -> tuple[float, str]:
    """Choose the threshold of a prediction and say where it comes from."""
    if given is not None:
        return given, "as given"
    if header.threshold is not None:
        return header.threshold, "from the prediction"
    return ORIGINAL_THRESHOLD, "the original solution's, as the file names none"
