"""The presets are what they say: the nine configurations of the original solution, and recipes that train."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from command_line import satdiff, succeed

from satdiff_cli import checkpoint, experiment
from satdiff_cli.config import TrainConfig, read_toml
from satdiff_cli.experiment import Machine, Planner
from satdiff_cli.pairing import read_pairs
from satdiff_cli.plugins import list_plugins, load_plugin
from satdiff_cli.presets import list_presets
from satdiff_cli.radiometry import GREY
from satdiff_cli.tiling import read_tiles

RGB = ("red", "green", "blue")
PRETRAINED = "models/pretrained"
# The originals' names, networks, encoders and the files they start from.
UNETS = {
    "unet++_resnet34": "resnet34",
    "unet++_resnet50": "resnet50",
    "unet++_resnext50": "resnext50_32x4d",
    "unet++_seresnext50": "se_resnext50_32x4d",
}
SIAMESE = {
    "siamese_unet_seresnext50": ("seresnext50", "pseudo_scseresnext_seamese_unet_shared_seresnext50_0_best_xview"),
    "siamese_unet_dpn92": ("dpn92", "softmax_dpn_seamese_unet_shared_dpn92_0_best_xview"),
    "siamese_unet_resnext101": ("resnext101", "sgd_resnext_seamese_unet_shared_resnext101_0_best_xview"),
    "siamese_unet_densenet161": ("densenet161", "pseudo_densenet_seamese_unet_shared_densenet161_0_best_xview"),
}
SNUNET = "siamese_unet_snunet"
# What all nine share: crops of 256 px, of which 70 % show change, five in a batch; Adam, Dice + BCE, no more than 150
# epochs and 7 without a better IoU at a threshold of 0.5. Nothing else that satdiff has is switched on.
SHARED: dict[str, Any] = {
    **TrainConfig().as_dict(),
    "crop": 256,
    "change_share": 0.7,
    "augment": "light",
    "normalize": "scene",
    "batch_size": 5,
    "loss": "dice+bce",
    "optimizer": "adam",
    "lr": 1e-4,
    "schedule": "exponential",
    "lr_decay": 0.97,
    "weight_decay": 0.0,
    "clip": 0.0,
    "epochs": 150,
    "patience": 7,
    "keep": "best",
    "threshold": 0.5,
    "fold": "auto",
    "shift": 0,
    "swap_dates": False,
    "label_smoothing": 0.0,
    "pos_weight": "1",
    "ema": 0.0,
    "freeze_encoder": 0,
    "freeze_bn": "none",
    "adapt_bn": "none",
    "steps": 0,
}
LANDCOVER = "dronedeploy_unet_mobilenetv2"
ORIGINALS: dict[str, dict[str, Any]] = {
    **{
        name: {"arch": "unetplusplus", "encoder": encoder, "input": "grey", "encoder_weights": "imagenet", "init": ""}
        for name, encoder in UNETS.items()
    },
    **{
        name: {"arch": "xview2", "encoder": encoder, "use_bands": list(RGB), "init": f"{PRETRAINED}/{file}"}
        for name, (encoder, file) in SIAMESE.items()
    },
    SNUNET: {"arch": "snunet", "use_bands": list(RGB), "init": ""},
}


@pytest.mark.parametrize("name", ORIGINALS)
def test_the_presets_of_the_original_solution_are_its_nine_configurations(name: str) -> None:
    found = experiment.resolve_config(name, None, {}).as_dict()
    defaults = getattr(load_plugin("models", found["arch"]), "DEFAULTS", {})
    assert found == {**SHARED, **defaults, **ORIGINALS[name]}


def test_there_are_nine_originals_and_every_preset_says_what_it_is() -> None:
    presets = list_presets()
    assert len(ORIGINALS) == 9
    assert set(presets) == {*ORIGINALS, "oscd", LANDCOVER}
    assert len(set(presets.values())) == len(presets)
    assert all(len(text) > 20 for text in presets.values())


@pytest.mark.parametrize("name", ORIGINALS)
def test_the_originals_see_grey_or_colours_and_no_near_infrared(project_root: Path, name: str) -> None:
    planner = Planner(read_tiles(project_root / "data"), read_pairs(project_root / "data"), Machine("cpu"))
    config = experiment.resolve_config(name, None, {})
    card = planner.plan(config, planner.split("0"), Path("none"), resume=False).card
    assert card.normalization.channels == ((GREY,) if name in UNETS else RGB)


def test_a_file_wins_over_a_preset_and_a_flag_over_both(tmp_path: Path) -> None:
    toml = tmp_path / "s.toml"
    toml.write_text("batch_size = 3\nlr = 0.5\n", encoding="utf-8")
    config = experiment.resolve_config(SNUNET, toml, {"lr": 0.25, "patience": None})
    assert (config.arch, config.batch_size, config.lr, config.patience, config.epochs) == ("snunet", 3, 0.25, 7, 150)
    # A preset wins over the defaults of its architecture, and these over those of all.
    assert experiment.resolve_config("siamese_unet_dpn92", None, {}).encoder == "dpn92"
    assert experiment.resolve_config("", None, {"arch": "xview2"}).encoder == "seresnext50"
    assert experiment.resolve_config("", None, {}) == TrainConfig()
    toml.write_text("arch = 'snunet'\nencoder = 'resnet18'\n", encoding="utf-8")
    assert experiment.resolve_config("unet++_resnet34", toml, {}).encoder == "resnet18"


def test_the_command_line_puts_flags_over_the_file_over_the_preset(project_root: Path, tmp_path: Path) -> None:
    toml = tmp_path / "s.toml"
    toml.write_text("batch_size = 3\nlr = 0.5\n", encoding="utf-8")
    args = ("--preset", SNUNET, "--config", toml, "--lr", 0.25, "--device", "cpu", "--crop", 64, "--dry-run")
    lines = succeed("train", *args, cwd=project_root).err.splitlines()
    assert lines[0].startswith(f"train  {SNUNET}_fold0: snunet on")
    for line in ("  arch = snunet", "  batch_size = 3", "  lr = 0.25", "  crop = 64", "  patience = 7"):
        assert line in lines


@pytest.mark.parametrize(("name", "hinting"), [("unet++_resnet43", "did you mean unet++_resnet34?"), ("x", SNUNET)])
def test_an_unknown_preset_is_refused_with_those_there_are(project_root: Path, name: str, hinting: str) -> None:
    outcome = satdiff("train", "--preset", name, cwd=project_root)
    assert outcome.code == 1
    assert f"unknown preset {name!r}" in outcome.err
    assert hinting in outcome.err.split("hint   ")[1]


def test_presets_architectures_and_encoders_are_listed_anywhere(tmp_path: Path) -> None:
    outcome = succeed("train", "--list-presets", cwd=tmp_path)
    listed = dict(line.split(maxsplit=1) for line in outcome.out.splitlines())
    assert listed == list_presets()
    assert succeed("train", "--list-archs", cwd=tmp_path).out.split() == list_plugins("models")
    encoders = succeed("train", "--list-encoders", "lite0", cwd=tmp_path).out.split()
    assert "tu-tf_efficientnet_lite0" in encoders
    assert all("lite0" in encoder for encoder in encoders)
    outcome = satdiff("train", "--list-encoders", "nonsense", cwd=tmp_path)
    assert (outcome.code, "no encoder has 'nonsense'" in outcome.err) == (1, True)
    assert not list(tmp_path.iterdir())


def test_presets_hold_nothing_but_settings_in_their_own_words() -> None:
    for name in list_presets():
        path = Path(experiment.__file__).parent / "presets" / f"{name}.toml"
        assert set(read_toml(path)) <= set(TrainConfig().as_dict())


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(list_presets().keys() - {LANDCOVER}))
def test_every_preset_of_change_trains(project: Path, name: str) -> None:
    arch = experiment.resolve_config(name, None, {}).arch
    weights = () if arch == "snunet" else ("--encoder-weights", "none")
    small = ("--crop", 64, "--batch-size", 2, "--steps", 1, "--epochs", 1, "--device", "cpu")
    outcome = succeed("train", "--preset", name, "--init", "", *weights, *small, cwd=project)
    folder = project / outcome.out.strip()
    assert folder.name.startswith(f"{name}_fold")
    card = checkpoint.read_card(folder)
    assert (card.arch, card.crop) == (arch, 64)
    shutil.rmtree(folder)  # the largest is half a gigabyte
