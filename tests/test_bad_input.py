"""What a person can get wrong: a message that names the file, a hint, exit code 1, nothing left over, nothing lost."""

import json
import os
import pickle
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from command_line import finish_satdiff, satdiff, snapshot, start_satdiff, succeed
from conftest import NETWORK, RUN, SHAPE, TEST, TINY, pair_id
from numpy.typing import NDArray

from satdiff_cli import raster
from satdiff_cli.commands.demo import name_scenes, place_grid, write_workbook
from satdiff_cli.windows import Window

PREDICTION = f"data/predicted_masks/{RUN}.pkl"
BEFORE, AFTER = (f"data/Images/{name}.tif" for name in name_scenes(0))
LABEL = f"data/mask/{pair_id(0)}.tif"
# The report says why pairing failed; it is meant to be there.
REPORTS = {"data/pairs_report.csv"}


def refuse(
    *args: object, cwd: Path, naming: str | tuple[str, ...], hinting: str = "", reports: set[str] | None = None
) -> str:
    """Run a command that must fail as a person's mistake, and change no file; return its message and hint."""
    before = snapshot(cwd)
    outcome = satdiff(*args, cwd=cwd)
    assert outcome.code == 1, (outcome.out, outcome.err)
    assert "error  " in outcome.err
    assert "hint   " in outcome.err, outcome.err
    assert outcome.out == ""
    for name in (naming,) if isinstance(naming, str) else naming:
        assert name in outcome.err, outcome.err
    assert hinting in outcome.err.split("hint   ")[1], outcome.err
    after = snapshot(cwd)
    allowed = reports or set()
    assert {name: data for name, data in after.items() if name not in allowed} == {
        name: data for name, data in before.items() if name not in allowed
    }
    assert not list(cwd.rglob(".*")), "a temporary file or folder is left"
    return outcome.err


def read_scene(path: Path) -> NDArray[Any]:
    with rasterio.open(path) as dataset:
        return dataset.read()


def rewrite(path: Path, pixels: NDArray[Any], number: int = 0) -> None:
    """Replace a scene or label by other pixels (C, H, W) at the same place."""
    path.unlink(missing_ok=True)
    raster.write_scene(path, pixels, place_grid(number, *pixels.shape[1:]))


# --- pair ----------------------------------------------------------------------------------------------------------


def test_a_data_folder_that_is_missing_or_empty(tmp_path: Path) -> None:
    refuse("pair", "nowhere", cwd=tmp_path, naming="nowhere does not exist")
    (tmp_path / "empty").mkdir()
    refuse("pair", "empty", cwd=tmp_path, naming="empty", hinting="--format")
    refuse("tile", "empty", cwd=tmp_path, naming="empty/pairs.csv", hinting="satdiff pair")
    refuse("info", "empty", cwd=tmp_path, naming="empty", hinting="satdiff pair")
    for verb in ("train", "predict", "submit", "evaluate", "export"):
        refuse(verb, "--data", "empty", cwd=tmp_path, naming="")


def test_a_table_without_usable_columns(scenes: Path) -> None:
    write_workbook(scenes / "data" / "Rucode.xls", [("apple", "pear"), ("plum", "cherry")])
    refuse("pair", "data", cwd=scenes, naming="Rucode.xls", reports=REPORTS)


def test_a_table_that_is_no_table(scenes: Path) -> None:
    (scenes / "data" / "Rucode.xls").write_bytes(b"\xd0\xcf\x11\xe0" + bytes(600))
    refuse("pair", "data", cwd=scenes, naming="Rucode.xls")


def test_a_missing_scene(scenes: Path) -> None:
    (scenes / AFTER).unlink()
    refuse("pair", "data", cwd=scenes, naming=Path(AFTER).stem, hinting="--allow-missing", reports=REPORTS)


@pytest.mark.parametrize("scene", [BEFORE, AFTER])
@pytest.mark.parametrize("share", [0.1, 0.6, 0.99])
def test_a_truncated_scene_is_named_itself_and_not_its_partner(scenes: Path, scene: str, share: float) -> None:
    data = (scenes / scene).read_bytes()
    (scenes / scene).write_bytes(data[: int(len(data) * share)])
    message = refuse("pair", "data", cwd=scenes, naming=f"{Path(scene).name} cannot be read", reports=REPORTS)
    other = AFTER if scene == BEFORE else BEFORE
    assert f"{Path(other).name} cannot be read" not in message


@pytest.mark.parametrize("scene", [BEFORE, AFTER, LABEL])
@pytest.mark.parametrize("content", [b"this is no image\n", b""])
def test_a_text_file_or_an_empty_file_named_tif(scenes: Path, scene: str, content: bytes) -> None:
    (scenes / scene).write_bytes(content)
    refuse("pair", "data", cwd=scenes, naming=f"{Path(scene).name} cannot be read", reports=REPORTS)


def test_other_bands_on_one_date(scenes: Path) -> None:
    rewrite(scenes / AFTER, read_scene(scenes / AFTER)[:3])
    refuse("pair", "data", cwd=scenes, naming=(BEFORE, AFTER, "4 bands", "3"), reports=REPORTS)


def test_scenes_of_other_places(scenes: Path) -> None:
    rewrite(scenes / AFTER, read_scene(scenes / AFTER), number=9)
    refuse("pair", "data", cwd=scenes, naming=(Path(AFTER).name, "do not overlap"), reports=REPORTS)


def test_scenes_that_are_nan_altogether(scenes: Path) -> None:
    rewrite(scenes / AFTER, np.full((4, *SHAPE), np.nan, np.float32))
    refuse("pair", "data", cwd=scenes, naming=(Path(AFTER).name, "no valid pixel"), reports=REPORTS)


def test_scenes_that_are_partly_nan_work_to_the_end(scenes: Path, project_root: Path) -> None:
    number = 5  # a test pair
    for name in name_scenes(number):
        path = scenes / "data" / "Images" / f"{name}.tif"
        pixels = read_scene(path).astype(np.float32) / 1024
        pixels[:, 20:60, 30:90] = np.nan
        pixels[2, 100:, 150:] = np.inf
        rewrite(path, pixels, number)
    succeed("pair", "data", "--coregister", "none", cwd=scenes)
    path = scenes / "data" / "composites" / f"{pair_id(number)}.tif"
    with raster.Composite(path) as composite:
        valid = composite.read_valid(Window(0, 0, *SHAPE))
        assert np.isfinite(composite.statistics.mean).all()
    expected = np.ones(SHAPE, bool)
    expected[20:60, 30:90] = expected[100:, 150:] = False
    np.testing.assert_array_equal(valid, expected)
    run = project_root / "models" / "saved" / RUN
    succeed("predict", run, "--device", "cpu", cwd=scenes)
    found = raster.read_probability(scenes / "data" / "predicted_masks" / RUN / path.name)
    np.testing.assert_array_equal(np.isfinite(found), expected)


def test_a_label_of_another_size(scenes: Path) -> None:
    rewrite(scenes / LABEL, np.zeros((1, 140, 190), np.uint8))
    refuse("pair", "data", cwd=scenes, naming=(LABEL, "140 × 190", "150 × 190"), reports=REPORTS)


def test_a_label_with_odd_values(scenes: Path) -> None:
    label = read_scene(scenes / LABEL)
    label[0, 5, 5:8] = 7
    rewrite(scenes / LABEL, label)
    refuse("pair", "data", cwd=scenes, naming=(LABEL, "7"), hinting="--label-values", reports=REPORTS)


def test_band_names_that_are_not_as_many_as_bands(scenes: Path) -> None:
    refuse("pair", "data", "--bands", "red,green", cwd=scenes, naming="2 bands", reports=REPORTS)


def test_an_unknown_format_is_answered_with_the_nearest(scenes: Path) -> None:
    refuse("pair", "data", "--format", "rucod", cwd=scenes, naming="'rucod'", hinting="did you mean rucode")


def test_pairing_that_fails_leaves_the_composites_that_are_there(project: Path) -> None:
    (project / BEFORE).write_bytes(b"no image")
    refuse("pair", "data", "--overwrite", cwd=project, naming=Path(BEFORE).name, reports=REPORTS)


# --- outputs that are there ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "output"),
    [
        (("pair", "data"), "data/pairs.csv"),
        (("tile", "data"), "data/tiles.csv"),
        (("train", *TINY, "--name", RUN), f"models/saved/{RUN}"),
        (("predict", RUN, "--device", "cpu"), f"data/predicted_masks/{RUN}"),
        (("ensemble", PREDICTION, "--out", f"data/predicted_masks/{RUN}"), f"data/predicted_masks/{RUN}"),
        (("submit", "--out", "data/sample_submission.csv"), "data/sample_submission.csv"),
        (("export", PREDICTION, "--out", "data/composites"), "data/composites"),
    ],
)
def test_what_is_there_is_not_replaced_unless_asked_for(project: Path, args: tuple[Any, ...], output: str) -> None:
    refuse(*args, cwd=project, naming=f"{output}", hinting="--overwrite")


@pytest.mark.parametrize("args", [("demo", "data"), ("export", PREDICTION, "--out", "data")])
def test_a_folder_that_satdiff_did_not_make_is_not_replaced_even_if_asked_for(
    project: Path, args: tuple[str, ...]
) -> None:
    refuse(*args, "--overwrite", cwd=project, naming="data", hinting="another place")


def test_a_table_that_would_be_replaced_by_the_result_is_refused(tmp_path: Path) -> None:
    mine = tmp_path / "pairs.csv"
    mine.write_text("before,after\na.tif,b.tif\n", encoding="utf-8")
    refuse("pair", mine, "--overwrite", cwd=tmp_path, naming="pairs.csv", hinting="rename")


# --- tile and train ------------------------------------------------------------------------------------------------


def cut(path: Path, share: float) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])


@pytest.mark.parametrize("share", [0.0, 0.03, 0.55])
def test_a_damaged_pairs_csv(project: Path, share: float) -> None:
    cut(project / "data" / "pairs.csv", share)
    for args in (("tile", "data", "--overwrite"), ("train", *TINY, "--name", "x"), ("predict", RUN, "--out", "x")):
        refuse(*args, cwd=project, naming="data/pairs.csv" if share < 0.5 else "pairs.csv", hinting="satdiff pair")


@pytest.mark.parametrize("share", [0.0, 0.01, 0.515])
def test_a_damaged_tiles_csv(project: Path, share: float) -> None:
    path = project / "data" / "tiles.csv"
    lines = path.read_text().splitlines()
    half = "\n".join([*lines[:9], lines[9].rsplit(",", 5)[0]])
    path.write_text(half if share > 0.5 else path.read_text()[: int(share * 3000)])
    refuse("train", *TINY, "--name", "x", cwd=project, naming="data/tiles.csv", hinting="satdiff tile")


def test_tiles_of_an_older_pairing_that_leave_the_composites(project: Path) -> None:
    path = project / "data" / "tiles.csv"
    path.write_text(path.read_text().replace(",22,62,128,128,", ",400,62,128,128,"))
    refuse("train", *TINY, "--name", "x", cwd=project, naming="leaves its composite", hinting="satdiff tile")


def test_a_composite_that_is_gone_or_damaged(project: Path) -> None:
    path = project / "data" / "composites" / f"{pair_id(5)}.tif"
    cut(path, 0.7)
    refuse("predict", RUN, "--out", "x", "--device", "cpu", cwd=project, naming=path.name, hinting="satdiff pair")
    path.unlink()
    refuse("predict", RUN, "--out", "x", "--device", "cpu", cwd=project, naming=path.stem, hinting="satdiff pair")


@pytest.mark.parametrize(
    ("args", "naming", "hinting"),
    [
        (("--arch", "siamesse"), "'siamesse'", "did you mean siamese"),
        (("--encoder", "resnet1888"), "resnet1888", "did you mean resnet18"),
        (("--encoder", "tu-resnet18888"), "resnet18888", "--encoder"),
        (("--decoder", "unnet"), "unnet", ""),
        (("--decoder", "dpt"), "decoder dpt needs", ""),
        (("--use-bands", "red,swir"), "'swir'", "--use-bands"),
        (("--encoder-weights", "none.pth"), "none.pth", ""),
        (("--epochs", 0), "epochs is 0", ""),
        (("--fold", 17), "'17'", "--fold"),
        (("--device", "tpu"), "tpu", "--device"),
        (("--config", "none.toml"), "none.toml", "--config"),
    ],
)
def test_settings_that_no_training_can_use(project: Path, args: tuple[Any, ...], naming: str, hinting: str) -> None:
    refuse("train", *TINY, "--name", "x", *args, cwd=project, naming=naming, hinting=hinting)


@pytest.mark.parametrize(
    ("text", "naming", "hinting"),
    [
        ("encodr = 'resnet18'", "'encodr'", "did you mean encoder"),
        ("epochs = 'many'", "epochs", ""),
        ("fusion = 'absdif'", "absdif", "did you mean absdiff"),
        ("epochs = ", "s.toml", "config.toml"),
    ],
)
def test_a_config_with_mistakes_is_named(project: Path, text: str, naming: str, hinting: str) -> None:
    (project / "s.toml").write_text(text)
    refuse("train", "--config", "s.toml", *NETWORK, cwd=project, naming=("s.toml", naming), hinting=hinting)


def test_resuming_what_is_not_there_or_is_damaged_or_is_something_else(project: Path) -> None:
    refuse("train", "--resume", "--encoder", "resnet18", cwd=project, naming=RUN, hinting="--name")
    refuse("train", "--resume", "--fold", 3, cwd=project, naming=RUN, hinting="--name")
    cut(project / "models" / "saved" / RUN / "last.ckpt", 0.5)
    refuse("train", "--resume", "--epochs", 3, cwd=project, naming="last.ckpt", hinting="satdiff train")
    (project / "models" / "saved" / RUN / "last.ckpt").unlink()
    refuse("train", "--resume", cwd=project, naming="last.ckpt", hinting="--overwrite")


def test_resuming_a_run_that_was_not_started_starts_it_and_says_so(project: Path) -> None:
    outcome = succeed("train", *TINY, "--resume", "--name", "other", cwd=project)
    assert "start  other: there is nothing to go on with yet" in outcome.err
    assert (project / "models" / "saved" / "other" / "manifest.json").is_file()
    shutil.rmtree(project / "models" / "saved")
    refuse("train", *TINY, "--resume", cwd=project, naming="models/saved holds no run", hinting="satdiff train")


def test_scenes_that_break_while_training_leave_no_run(project: Path) -> None:
    for path in (project / "data" / "composites").glob("*.tif"):
        cut(path, 0.7)
    refuse("train", *TINY, "--name", "x", cwd=project, naming=".tif", hinting="satdiff pair")


# --- predict -------------------------------------------------------------------------------------------------------


def test_a_run_that_is_not_there_or_without_weights_or_damaged(project: Path) -> None:
    folder = project / "models" / "saved" / RUN
    refuse("predict", "other", cwd=project, naming=("'other'", RUN), hinting="satdiff train")
    cut(folder / "weights.safetensors", 0.5)
    refuse("predict", RUN, "--out", "x", "--device", "cpu", cwd=project, naming="weights.safetensors", hinting="train")
    (folder / "weights.safetensors").unlink()
    refuse("predict", RUN, "--out", "x", "--device", "cpu", cwd=project, naming="weights.safetensors", hinting="train")
    cut(folder / "model.json", 0.5)
    refuse("predict", RUN, "--out", "x", "--device", "cpu", cwd=project, naming="model.json", hinting="train")
    (folder / "model.json").unlink()
    refuse("predict", RUN, "--out", "x", "--device", "cpu", cwd=project, naming="model.json", hinting="train")


def test_bands_that_are_not_those_of_the_run(project: Path) -> None:
    succeed("pair", "data", "--bands", "nir,red,green,blue", "--overwrite", cwd=project)
    refuse(
        "predict", RUN, "--out", "x", "--device", "cpu",
        cwd=project, naming=("nir, red, green, blue", RUN), hinting="--bands red,green,blue,nir",
    )  # fmt: skip


def test_impossible_windows(project: Path) -> None:
    refuse("predict", RUN, "--out", "x", "--window", 64, "--overlap", 64, cwd=project, naming="64", hinting="overlap")
    refuse("tile", "data", "--size", 64, "--overlap", 64, "--overwrite", cwd=project, naming="64", hinting="overlap")


# --- predictions ---------------------------------------------------------------------------------------------------


@pytest.fixture(params=["ensemble", "evaluate", "submit", "export", "info"])
def read_prediction(request: pytest.FixtureRequest, project: Path) -> Callable[..., str]:
    """Give a file to each verb that reads predictions, and expect it to be refused."""

    def read(path: str, **expected: Any) -> str:
        more = ("--out", "mean") if request.param == "ensemble" else ()
        return refuse(request.param, path, *more, cwd=project, **{"naming": path, **expected})

    return read


class TouchesAFile:
    """Run a command when it is unpickled by a reader that trusts its files."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


def test_a_pickle_that_would_run_code_is_refused_and_does_not_run_it(
    project: Path, read_prediction: Callable[..., str]
) -> None:
    touched = project.parent / "touched"
    (project / "first.pkl").write_bytes(pickle.dumps(TouchesAFile(touched)))
    read_prediction("first.pkl", naming=("first.pkl", "system"))
    assert not touched.exists()
    pickle.loads((project / "first.pkl").read_bytes())
    assert touched.exists(), "the file is harmless, so this test shows nothing"


def test_a_later_frame_that_would_run_code_is_refused_too(project: Path) -> None:
    touched = project.parent / "touched"
    whole = (project / PREDICTION).read_bytes()
    start = len(pickle.dumps(pickle.loads(whole), protocol=4))
    (project / "later.pkl").write_bytes(whole[:start] + pickle.dumps(TouchesAFile(touched)))
    for args in (("submit", "later.pkl"), ("ensemble", "later.pkl", "--out", "mean"), ("export", "later.pkl")):
        refuse(*args, cwd=project, naming=("later.pkl", "system"))
    assert not touched.exists()


@pytest.mark.parametrize(
    "content",
    [b"", b"no pickle", pickle.dumps({"a": 1}), pickle.dumps(12), pickle.dumps(np.zeros(3)), b"\x80\x04\x95"],
    ids=["empty", "text", "dict", "number", "array", "cut"],
)
def test_a_pickle_that_is_no_prediction(project: Path, read_prediction: Callable[..., str], content: bytes) -> None:
    (project / "odd.pkl").write_bytes(content)
    read_prediction("odd.pkl")


def test_a_prediction_that_breaks_off(project: Path) -> None:
    cut(project / PREDICTION, 0.7)
    for verb in ("submit", "ensemble"):
        refuse(verb, PREDICTION, "--out", "x", cwd=project, naming=PREDICTION, hinting="satdiff predict")


def test_a_prediction_folder_that_lacks_a_raster(project: Path) -> None:
    folder = PREDICTION.removesuffix(".pkl")
    (project / folder / f"{pair_id(5)}.tif").unlink()
    refuse("submit", folder, cwd=project, naming=(folder, f"missing {pair_id(5)}"), hinting="satdiff predict")


def test_a_bare_list_with_fewer_arrays_than_ids(project: Path) -> None:
    (project / "old.pkl").write_bytes(pickle.dumps([np.zeros((3, 4), np.float16)] * (TEST + 1)))
    refuse("submit", "old.pkl", cwd=project, naming=("old.pkl", f"{TEST + 1} arrays"), hinting="--ids")


def test_evaluating_without_labels(project: Path) -> None:
    refuse("evaluate", PREDICTION, cwd=project, naming=(PREDICTION, pair_id(5)), hinting="--out-of-fold")
    refuse("evaluate", PREDICTION, "--allow-missing", cwd=project, naming=PREDICTION, hinting="--out-of-fold")
    refuse("evaluate", PREDICTION, "--labels", "none", cwd=project, naming="none", hinting="--labels")


def test_a_label_of_another_size_than_the_prediction(project: Path) -> None:
    (project / "truth").mkdir()
    for number in (5, 6):
        raster.write_band(project / "truth" / f"{pair_id(number)}.tif", np.zeros((9, 7), np.uint8), raster.Grid(9, 7))
    refuse("evaluate", PREDICTION, "--labels", "truth", cwd=project, naming="9 × 7", hinting="grid")


def test_names_that_are_not_there(project: Path) -> None:
    refuse("submit", "other", cwd=project, naming="other", hinting="satdiff predict")
    refuse("submit", "--sample", "none.csv", cwd=project, naming="none.csv", hinting="--sample")
    refuse("ensemble", PREDICTION, "other.pkl", "--out", "x", cwd=project, naming="other.pkl", hinting="predict")
    refuse("ensemble", PREDICTION, "--weights", "1,2", "--out", "x", cwd=project, naming="2 weights", hinting="number")
    refuse("export", PREDICTION, "--as", "mask_tiff", cwd=project, naming="mask_tiff", hinting="did you mean mask_tif")


# --- no space ------------------------------------------------------------------------------------------------------

FULL_DISK = [
    ("pair", ("pair", "data", "--overwrite"), 100_000),
    ("tile", ("tile", "data", "--overwrite"), 500),
    ("train", ("train", *TINY, "--name", "x"), 1_000_000),
    ("last", ("train", *TINY, "--name", "x"), 10_000_000),
    ("predict", ("predict", RUN, "--out", "x", "--device", "cpu"), 10_000),
    ("ensemble", ("ensemble", PREDICTION, "--out", "x"), 30_000),
    ("submit", ("submit", "--threshold", "0.49"), 2_000),
    ("export", ("export", "--as", "png"), 10_000),
]


@pytest.mark.parametrize(("args", "limit"), [item[1:] for item in FULL_DISK], ids=[item[0] for item in FULL_DISK])
def test_no_space_is_reported_and_nothing_is_lost(project: Path, args: tuple[Any, ...], limit: int) -> None:
    before = snapshot(project)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        outcome = satdiff(*args, cwd=project)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert outcome.code == 1, outcome.err
    assert "Traceback" not in outcome.err
    assert "error  cannot write" in outcome.err
    assert "hint   free some space" in outcome.err
    after = {name: data for name, data in snapshot(project).items() if name not in REPORTS}
    assert after == {name: data for name, data in before.items() if name not in REPORTS}
    assert not list(project.rglob(".*"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 700 KiB, where the machine lets us have one."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = shutil.which("mount")
    mounted = mount and subprocess.run(
        [mount, "-t", "tmpfs", "-o", "size=700k", "tmpfs", place], check=False, capture_output=True
    )
    if not mounted or mounted.returncode:
        pytest.skip("a disk can only be mounted as root")
    yield place
    subprocess.run(["umount", place], check=True)


def test_pairing_onto_a_full_disk_is_reported_and_leaves_nothing(scenes_root: Path, small_disk: Path) -> None:
    outcome = satdiff("pair", scenes_root / "data", "--out", small_disk, cwd=small_disk)
    assert outcome.code == 1, outcome.err
    assert "cannot write" in outcome.err
    assert "MB are free" in outcome.err
    assert not list(small_disk.iterdir())


def test_predicting_onto_a_full_disk_is_reported_and_goes_on_when_there_is_room(
    project: Path, small_disk: Path
) -> None:
    (small_disk / "ballast").write_bytes(bytes(640_000))
    command = ("predict", RUN, "--out", small_disk / "x", "--device", "cpu")
    outcome = satdiff(*command, cwd=project)
    assert outcome.code == 1, outcome.err
    assert "cannot write" in outcome.err
    assert {path.name for path in small_disk.iterdir()} <= {"ballast", ".x.partial"}  # nothing that looks finished
    (small_disk / "ballast").unlink()
    succeed(*command, cwd=project)
    assert sorted(path.name for path in small_disk.iterdir()) == ["x", "x.pkl"]
    for path in (small_disk / "x").glob("*.tif"):
        expected = project / "data" / "predicted_masks" / RUN / path.name
        np.testing.assert_array_equal(raster.read_probability(path), raster.read_probability(expected))


# --- usage ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("args", [("pair", "--nonsense"), ("tile", "--size", "big"), ("paint",), ("ensemble",)])
def test_wrong_usage_ends_with_2(tmp_path: Path, args: tuple[str, ...]) -> None:
    assert satdiff(*args, cwd=tmp_path).code == 2
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["new", RUN])
def test_stopping_a_training_before_its_first_epoch_changes_nothing(project: Path, name: str) -> None:
    before = snapshot(project)
    args = ("train", *TINY[:-6], "--steps", 100_000, "--device", "cpu", "--name", name, "--overwrite")
    process = start_satdiff(*args, cwd=project)
    assert process.stderr is not None
    assert f"train  {name}" in process.stderr.readline()
    time.sleep(5)  # the training is under way, or its libraries are still being imported: both must end well
    process.send_signal(signal.SIGINT)
    outcome = finish_satdiff(process)
    assert (outcome.code, "Traceback" in outcome.err) == (1, False), outcome.err
    assert "nothing is saved" in outcome.err or "nothing half-written is left" in outcome.err
    assert snapshot(project) == before, "the same command must work again, and the older run is still there"


def test_weights_of_another_network_are_refused(project: Path) -> None:
    torch.save({"state_dict": {"module.x": torch.zeros(2)}}, project / "w.pth")
    train = ("train", *TINY, "--name", "x", "--encoder-weights")
    refuse(*train, "w.pth", cwd=project, naming="w.pth", hinting="--encoder")
    torch.save(torch.nn.Linear(2, 2), project / "module.pth")
    refuse(*train, "module.pth", cwd=project, naming="module.pth")


def test_a_manifest_of_another_kind_names_the_right_command(project: Path) -> None:
    manifest = project / "data" / "composites" / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"kind": "prediction"}))
    refuse("tile", "data", "--overwrite", cwd=project, naming="data/composites", hinting="satdiff pair")
