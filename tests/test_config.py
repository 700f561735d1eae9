"""Settings: defaults, then a TOML file, then flags; everything else is an error that helps."""

from pathlib import Path
from typing import Any

import pytest
import tomli_w

from satdiff_cli.config import TrainConfig
from satdiff_cli.errors import ConfigError


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    path = tmp_path / "run.toml"
    path.write_text('crop = 192\nlr = 1\nbatch-size = 4\nuse_bands = ["red", "nir"]\nfold = 2\n', encoding="utf-8")
    return path


def write_toml(folder: Path, text: str) -> Path:
    path = folder / "given.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_nothing_said_gives_the_defaults() -> None:
    assert TrainConfig.resolve(None, {}) == TrainConfig()
    assert TrainConfig.resolve(None, {"crop": None, "arch": None}) == TrainConfig()


def test_an_empty_file_gives_the_defaults(tmp_path: Path) -> None:
    assert TrainConfig.resolve(write_toml(tmp_path, ""), {}) == TrainConfig()


def test_a_file_wins_over_defaults_and_a_flag_over_the_file(toml: Path) -> None:
    config = TrainConfig.resolve(toml, {"crop": 128, "seed": 0, "epochs": None})
    assert (config.crop, config.batch_size, config.use_bands) == (128, 4, ("red", "nir"))
    assert config.epochs == TrainConfig().epochs


def test_a_flag_of_zero_is_given_and_not_missing(tmp_path: Path) -> None:
    path = write_toml(tmp_path, "steps = 9\njitter = 0.5\nseed = 3\n")
    config = TrainConfig.resolve(path, {"steps": 0, "jitter": 0.0, "seed": 0})
    assert (config.steps, config.jitter, config.seed) == (0, 0.0, 0)


def test_whole_numbers_fit_where_a_fraction_or_a_name_is_expected(toml: Path) -> None:
    config = TrainConfig.resolve(toml, {})
    assert config.lr == 1.0
    assert isinstance(config.lr, float)
    assert config.fold == "2"


def test_one_band_may_be_given_without_a_list(tmp_path: Path) -> None:
    assert TrainConfig.resolve(write_toml(tmp_path, 'use_bands = "nir"'), {}).use_bands == ("nir",)


@pytest.mark.parametrize(
    ("key", "nearest"),
    [("epoch", "epochs"), ("batchsize", "batch_size"), ("lr-decai", "lr_decay"), ("encodr", "encoder")],
)
def test_an_unknown_setting_suggests_the_nearest(tmp_path: Path, key: str, nearest: str) -> None:
    with pytest.raises(ConfigError, match=f"unknown setting '{key}'") as caught:
        TrainConfig.resolve(write_toml(tmp_path, f"{key} = 1"), {})
    assert caught.value.hint == f"did you mean {nearest}?"
    assert "given.toml" in caught.value.message


def test_an_unknown_setting_like_no_other_lists_them_all(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        TrainConfig.resolve(write_toml(tmp_path, "[zzzzqqqq]\ncrop = 3"), {})
    assert "batch_size" in caught.value.hint


@pytest.mark.parametrize(
    "line",
    [
        'crop = "256"',
        "crop = 256.0",
        "crop = true",
        "lr = true",
        'lr = "fast"',
        "arch = 1.5",
        "arch = true",
        "use_bands = 3",
        "use_bands = [1.5]",
        "use_bands = {red = 1}",
        "use_bands = [[1]]",
        "fusion = 1",
        "fusion = ['concat']",
        "crop = 1979-05-27",
    ],
)
def test_a_value_of_the_wrong_type_is_refused_by_name(tmp_path: Path, line: str) -> None:
    key = line.split(" ", 1)[0]
    with pytest.raises(ConfigError, match=rf"given\.toml: {key} is .*expected"):
        TrainConfig.resolve(write_toml(tmp_path, line), {})


def test_a_choice_that_does_not_exist_lists_the_choices_and_the_nearest() -> None:
    message = "the command line: fusion is 'absdif', expected one of concat, sum, diff, absdiff"
    with pytest.raises(ConfigError, match=message) as caught:
        TrainConfig.resolve(None, {"fusion": "absdif"})
    assert caught.value.hint == "did you mean absdiff?"


@pytest.mark.parametrize(
    "values",
    [
        {"crop": 0},
        {"crop": -1},
        {"batch_size": 0},
        {"epochs": 0},
        {"patience": 0},
        {"lr": 0.0},
        {"lr": float("nan")},
        {"lr": float("inf")},
        {"lr_decay": 0.0},
        {"steps": -1},
        {"jitter": -0.1},
        {"jitter": float("nan")},
        {"weight_decay": -1.0},
        {"weight_decay": float("nan")},
        {"change_share": 1.01},
        {"change_share": -0.01},
        {"change_share": float("nan")},
        {"seed": -1},
        {"seed": 2**32},
    ],
)
def test_a_value_that_no_training_can_use_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(values))):
        TrainConfig.resolve(None, values)


@pytest.mark.parametrize(
    "values", [{"change_share": 0.0}, {"change_share": 1.0}, {"jitter": 0.0}, {"steps": 0}, {"crop": 1}, {"seed": 0}]
)
def test_the_ends_of_a_range_are_admitted(values: dict[str, Any]) -> None:
    assert TrainConfig.resolve(None, values).as_dict().items() >= values.items()


@pytest.mark.parametrize("text", ["crop = ", "crop = 1\ncrop = 2", "= 3", "crop 256"])
def test_a_file_that_is_no_toml_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match="not valid TOML"):
        TrainConfig.resolve(write_toml(tmp_path, text), {})


def test_a_file_that_is_no_text_or_not_there_is_refused(tmp_path: Path) -> None:
    binary = tmp_path / "given.toml"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not valid TOML"):
        TrainConfig.resolve(binary, {})
    with pytest.raises(ConfigError, match="cannot read"):
        TrainConfig.resolve(tmp_path / "missing.toml", {})
    with pytest.raises(ConfigError, match="cannot read"):
        TrainConfig.resolve(tmp_path, {})


@pytest.mark.parametrize(
    "config",
    [
        TrainConfig(),
        TrainConfig(arch="unetplusplus", use_bands=("red", "nir"), fold="0", lr=1e-7, input="absdiff", seed=2**31),
        TrainConfig(encoder_weights='path with "quotes" and \\ ünïcode', use_bands=("one",)),
    ],
)
def test_settings_written_as_toml_resolve_to_the_same_settings(tmp_path: Path, config: TrainConfig) -> None:
    path = write_toml(tmp_path, tomli_w.dumps(config.as_dict()))
    assert TrainConfig.resolve(path, {}) == config
    assert TrainConfig.resolve(None, config.as_dict()) == config
