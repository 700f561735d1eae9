"""The DroneDeploy benchmark: orthomosaics of 10 cm, elevations and coloured labels, split by scene."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from satdiff_cli.catalog import (
    NO_FOLD,
    TEST_FOLD,
    TRAIN_FOLD,
    VALIDATION_FOLD,
    Catalog,
    CatalogOptions,
    LandClass,
    Problem,
    ScenePair,
    name_site,
)
from satdiff_cli.errors import CatalogError
from satdiff_cli.formats._single_date import Endings, list_pairs, list_problems, read_base
from satdiff_cli.formats._splits import read_lists

ENDINGS = Endings(images="-ortho", labels="-label", elevations="-elev")
CLASSES = (
    LandClass(0, "building", (230, 25, 75)),
    LandClass(1, "clutter", (145, 30, 180)),
    LandClass(2, "vegetation", (60, 180, 75)),
    LandClass(3, "water", (245, 130, 48)),
    LandClass(4, "ground", (255, 255, 255)),
    LandClass(5, "car", (0, 130, 200)),
)

# The split that the benchmark is scored by (https://github.com/dronedeploy/dd-ml-segmentation-benchmark). A scene is
# called like 1d4fbe33f3_F1BE1D4184INSPIRE; what stands before the underscore tells all 154 apart, of which the set
# "medium" holds 55 and the set "sample" three.
OFFICIAL_SPLIT = {
    scene: fold
    for fold, scenes in {
        TRAIN_FOLD: """
            11cdce7802 130a76ebe1 1553541487 1553541585 1553627230 1553642501 15efe45820 1666d0369f 1d056881e8
            1d4fbe33f3 1df70e7340 236da542ee 2552eb56dd 274518390f 277f16713e 2a8617d7d4 2c36a93b10 2ef3a4994a
            2ef883f08d 32760710b0 3452561694 34fbf7c2bd 3502e187b2 364d26fd40 385393ca4b 399c1c010d 3a2200b6c0
            3bdbe137a1 520947aa07 53471726bc 564d5fd4ea 56e9e81013 571ed24019 5a5e4e491b 5fa39d6378 628be3d244
            63430fa268 6500c05298 664e38b92b 6664b45691 686c48a300 6958d7a8d5 7008b80b00 7197260eb8 748d0acb6d
            74a2f5aaa9 7a14002b7b 7c53bbf0da 7c59b1a217 7c719dfcc0 7ed68b136e 803cd2c508 807c0c243b 83d72f744d
            84410645db 84830cff24 87eeb1b9cc 888432f840 91ad290806 981755057f 9e7f0310a0 a0cee5daca a1af86939f
            a4580732ce a8789b3c97 ab4a9b813f ade6e4b261 afb793674b b61673f780 b705d0cc9c b771104de5 b970fca868
            c167ca6cb2 c37dbfae2f c644f91210 c6890f580c c6d131e346 c8eb574986 d02ce7cb10 d0dc53f9c7 d45d74e584
            d5107a09cf d8786926c5 d9161f7e18 e2e401ba8b e848b35eff ebffe540d0 edc59d4824 f0747ed88d f4dd768188
            f56b6b2232 f971256246 f9f43e5144 fc5837dcf8
        """,
        VALIDATION_FOLD: """
            12c3372a95 137f4dfb89 1476907971 264c36d368 32052d9b97 3731e901b0 37cf2e5706 3bb457cde8 42ab9f9e27
            46b27f92c2 551063e3c5 57426ebe1e 600023a2df 679850f980 6b82bcd67b 74d7796531 9170479165 941cb687d3
            954a8c814c 97c4dd388d a1199a489f a11d963a7d aef48b9aca c8a7031e5f cc4b443c7d cd5a0d3ce4 ea607f191d
            ec09336a6f f0c32df5a8 f78c4e5748
        """,
        TEST_FOLD: """
            107f24d6e9 12fa5e614f 1553539551 168ac179d9 1726eb08ef 18072ccb69 25f1c24f30 2f7aabb6e5 36d5956a21
            39e77bedd0 3ff76e84d5 420d6b69b8 546f85625a 55ca10d9f1 5ab849ec40 632de91030 6f93b9026b 7310356a1b
            8710b98ea0 8b0ac1fc28 9254c82db0 a0a6f46099 c2e8370ca3 d06b2c67d2 dabec5e872 e1d3e6f6ba e87da4ebdb
            eee7d707d4 fb74c54103 feb7a50f10
        """,
    }.items()
    for scene in scenes.split()
}


def recognise(root: Path, options: CatalogOptions) -> bool:  # noqa: ARG001 - every format has this signature
    """Tell whether the folder holds ``images/<scene>-ortho.tif``."""
    base = read_base(root, NO_FOLD, ENDINGS)
    return base is not None and bool(base.images)


def read_catalog(root: Path, options: CatalogOptions) -> Catalog:
    """Take each orthomosaic as a scene of one date, with its label and its elevation.

    Folds are those of the benchmark's split, or of ``list/train.txt``, ``val.txt`` and ``test.txt`` where these name a
    scene; where neither knows any scene, folds are spread by site as for other data. ``index.csv`` is not needed: it
    has no header and repeats each scene's size and how much of each class it holds, but not its split.

    Raises:
        CatalogError: There is no folder ``images``, or it holds no orthomosaics.
    """
    base = read_base(root, NO_FOLD, ENDINGS)
    if base is None or not base.images:
        raise CatalogError(
            f"{root} holds no images/<scene>-ortho.tif", "satdiff fetch dronedeploy --set sample gets such a dataset"
        )
    stems = {path.stem for path in base.images.values()} | base.images.keys()
    listed, list_faults = read_lists(root, stems, "not in images")
    pairs = [
        replace(
            pair,
            site_id=name_site(pair.pair_id, options.site_pattern),
            fold=_find_fold(pair, listed),
        )
        for pair in list_pairs(root, base)
    ]
    problems = [*list_problems(root, base), *list_faults]
    if any(pair.fold for pair in pairs):
        problems += _list_unplaced(pairs)
        pairs = [pair for pair in pairs if pair.fold]
    return Catalog("dronedeploy", tuple(pairs), tuple(problems), classes=CLASSES)


def _find_fold(pair: ScenePair, listed: dict[str, str]) -> str:
    names = (pair.pair_id, pair.before[0].stem)
    by_list = next((listed[name] for name in names if name in listed), NO_FOLD)
    return by_list or OFFICIAL_SPLIT.get(pair.pair_id.split("_")[0], NO_FOLD)


def _list_unplaced(pairs: Iterable[ScenePair]) -> list[Problem]:
    reason = "the scene is not in the benchmark's split; name it in list/train.txt, list/val.txt or list/test.txt"
    return [Problem("images", pair.pair_id, reason) for pair in pairs if not pair.fold]
