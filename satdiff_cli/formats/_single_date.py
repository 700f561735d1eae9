"""Scenes of one date: images, labels and elevations side by side, joined by name; shared by formats."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from satdiff_cli.catalog import Problem, ScenePair, list_rasters
from satdiff_cli.tables import index_by_stem

IMAGES, LABELS, ELEVATIONS = "images", "labels", "elevations"


@dataclass(frozen=True)
class Endings:
    """Say what the names of images, labels and elevations end with, before their suffix; the rest names the scene."""

    images: str = ""
    labels: str = ""
    elevations: str = ""


@dataclass(frozen=True)
class Base:
    """Hold what lies in the folders of one split, or of the whole set where ``split`` is empty, by scene.

    ``labels`` and ``elevations`` are None where their folder is missing: nobody meant to have them.
    """

    split: str
    folder: Path
    images: dict[str, Path]
    labels: dict[str, Path] | None
    elevations: dict[str, Path] | None
    problems: tuple[Problem, ...]


def read_base(folder: Path, split: str, endings: Endings) -> Base | None:
    """List the scenes of a folder; None where it has no subfolder ``images``."""
    kinds = (IMAGES, LABELS, ELEVATIONS)
    # By exact name, also where the file system ignores case: Images is another layout's.
    there = {path.name for path in folder.iterdir() if path.is_dir()} if folder.is_dir() else set()
    if IMAGES not in there:
        return None
    found = {kind: _index(folder / kind, getattr(endings, kind)) for kind in kinds if kind in there}
    return Base(
        split,
        folder,
        images=found[IMAGES][0],
        labels=found[LABELS][0] if LABELS in found else None,
        elevations=found[ELEVATIONS][0] if ELEVATIONS in found else None,
        problems=tuple(problem for _, problems in found.values() for problem in problems),
    )


def _index(folder: Path, ending: str) -> tuple[dict[str, Path], list[Problem]]:
    files, problems = index_by_stem(list_rasters(folder), folder)
    strange = [stem for stem in files if not stem.endswith(ending)]
    problems += [Problem(folder.name, stem, f"the name does not end with {ending}") for stem in strange]
    return {stem.removesuffix(ending): path for stem, path in files.items() if stem.endswith(ending)}, problems


def list_pairs(root: Path, base: Base) -> list[ScenePair]:
    """Make a pair without an after scene of each image; ids are still bare names, which may repeat in another base."""
    return [
        ScenePair(
            pair_id=scene,
            before=(image,),
            after=(),
            site_id=scene,
            source=str(image.relative_to(root)),
            label=(base.labels or {}).get(scene),
            fold=base.split,
            elevation=(base.elevations or {}).get(scene),
        )
        for scene, image in sorted(base.images.items())
    ]


def list_problems(root: Path, base: Base) -> Iterator[Problem]:
    """List files with the same name, images without a label or elevation, and labels and elevations of no image."""
    place = base.folder.relative_to(root)
    yield from (replace(problem, source=str(place / problem.source)) for problem in base.problems)
    for kind, files in ((LABELS, base.labels), (ELEVATIONS, base.elevations)):
        if files is None:
            continue
        name, there = kind.removesuffix("s"), str(place / kind)
        for scene in sorted(base.images.keys() - files.keys()):
            reason = f"the scene has no {name} in {there}; with --allow-missing it is used without"
            yield Problem(str(place / IMAGES), scene, reason)
        for scene in sorted(files.keys() - base.images.keys()):
            yield Problem(there, scene, f"the {name} belongs to no scene in {place / IMAGES}")
