"""Presets: the nine networks of the original solution with its settings, and whatever else has a name."""

from pathlib import Path

import pytest
from command_line import satdiff, succeed

from satdiff_cli import checkpoint, experiment
from satdiff_cli.config import TrainConfig
from satdiff_cli.errors import ConfigError
from satdiff_cli.presets import list_presets, read_preset

CHECKPOINTS = {
    "seresnext50": "pseudo_scseresnext_seamese_unet_shared_seresnext50_0_best_xview",
    "dpn92": "softmax_dpn_seamese_unet_shared_dpn92_0_best_xview",
    "resnext101": "sgd_resnext_seamese_unet_shared_resnext101_0_best_xview",
    "densenet161": "pseudo_densenet_seamese_unet_shared_densenet161_0_best_xview",
}
ORIGINAL = {
    "unet++_resnet34": ("unetplusplus", "resnet34"),
    "unet++_resnet50": ("unetplusplus", "resnet50"),
    "unet++_resnext50": ("unetplusplus", "resnext50_32x4d"),
    "unet++_seresnext50": ("unetplusplus", "se_resnext50_32x4d"),
    **{f"siamese_unet_{encoder}": ("xview2", encoder) for encoder in CHECKPOINTS},
    "siamese_unet_snunet": ("snunet", None),
}
# One step of one epoch, from random weights.
BRIEF = ("--init", "", "--encoder-weights", "none", "--crop", 64, "--batch-size", 2, "--steps", 1, "--epochs", 1)


@pytest.mark.parametrize("name", ORIGINAL)
def test_the_original_settings_are_the_published_ones(name: str) -> None:
    config = experiment.resolve_config(name, None, {})
    arch, encoder = ORIGINAL[name]
    assert (config.arch, config.crop, config.batch_size) == (arch, 256, 5)
    assert (config.optimizer, config.lr, config.schedule, config.lr_decay) == ("adam", 1e-4, "exponential", 0.97)
    assert (config.epochs, config.patience, config.loss, config.threshold) == (150, 7, "dice+bce", 0.5)
    assert (config.change_share, config.augment, config.normalize, config.keep) == (0.7, "light", "scene", "best")
    assert (config.weight_decay, config.clip, config.ema, config.shift, config.swap_dates) == (0, 0, 0, 0, False)
    if encoder:
        assert config.encoder == encoder
    if arch == "unetplusplus":
        assert (config.input, config.encoder_weights, config.init) == ("grey", "imagenet", "")
    else:
        assert config.use_bands == ("red", "green", "blue")
    if arch == "xview2":
        assert Path(config.init).name == CHECKPOINTS[config.encoder]


@pytest.mark.parametrize("name", list_presets())
def test_every_preset_holds_known_settings_and_says_what_it_is(name: str) -> None:
    assert TrainConfig.resolve(None, {}, base=read_preset(name)) != TrainConfig()
    assert len(list_presets()[name]) > 20
    assert not list_presets()[name].startswith("#")


def test_a_file_wins_over_a_preset_and_a_flag_over_both(tmp_path: Path) -> None:
    toml = tmp_path / "own.toml"
    toml.write_text("crop = 128\nepochs = 9\n", encoding="utf-8")
    config = experiment.resolve_config("unet++_resnet34", toml, {"epochs": 3})
    assert (config.encoder, config.crop, config.epochs, config.batch_size) == ("resnet34", 128, 3, 5)


def test_an_architecture_brings_its_own_defaults_below_a_preset_and_flags() -> None:
    assert experiment.resolve_config("", None, {"arch": "xview2"}).encoder == "seresnext50"
    assert experiment.resolve_config("", None, {"arch": "xview2", "encoder": "dpn92"}).encoder == "dpn92"
    assert experiment.resolve_config("siamese_unet_dpn92", None, {}).encoder == "dpn92"
    assert experiment.resolve_config("", None, {}).encoder == TrainConfig().encoder


def test_an_unknown_preset_suggests_the_nearest(project: Path) -> None:
    with pytest.raises(ConfigError, match="unknown preset 'unet_resnet34'") as caught:
        read_preset("unet_resnet34")
    assert "did you mean unet++_resnet34?" in caught.value.hint
    outcome = satdiff("train", "--preset", "oscdd", cwd=project)
    assert outcome.code == 1
    assert "did you mean oscd?" in outcome.err


def test_lists_are_printed_on_stdout(tmp_path: Path) -> None:
    presets = succeed("train", "--list-presets", cwd=tmp_path).out.splitlines()
    assert [line.split("  ")[0].strip() for line in presets] == list(list_presets())
    archs = succeed("train", "--list-archs", cwd=tmp_path).out.split()
    assert {"siamese", "unetplusplus", "xview2", "snunet", "fcsiam", "bit", "changeformer"} <= set(archs)
    encoders = succeed("train", "--list-encoders", "efficientnet_lite0", cwd=tmp_path).out.split()
    assert {"timm-tf_efficientnet_lite0", "tu-tf_efficientnet_lite0"} <= set(encoders)
    assert all("efficientnet_lite0" in name for name in encoders)
    outcome = satdiff("train", "--list-encoders", "resnet1888", cwd=tmp_path)
    assert outcome.code == 1
    assert "resnet1888" in outcome.err


@pytest.mark.slow
@pytest.mark.parametrize("name", list_presets())
def test_every_preset_trains_an_epoch_and_predicts(project: Path, name: str) -> None:
    succeed("train", "--preset", name, *BRIEF, "--device", "cpu", cwd=project)
    fold = "none" if read_preset(name).get("fold") == "none" else "0"
    card = checkpoint.read_card(project / "models" / "saved" / f"{name}_fold{fold}")
    assert (card.arch, card.epoch) == (experiment.resolve_config(name, None, {}).arch, 1)
    succeed("predict", f"{name}_fold{fold}", "--no-pickle", "--device", "cpu", cwd=project)
    assert len(list((project / "data" / "predicted_masks" / f"{name}_fold{fold}").glob("*.tif"))) == 2
