"""``satdiff train``: train a network on one split of the folds."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from satdiff_cli.commands import _options as options
from satdiff_cli.config import DifferenceInput, Fusion, NormalizeKind, TrainConfig
from satdiff_cli.plugins import list_plugins

if TYPE_CHECKING:
    from satdiff_cli import experiment, training


def setting(flag: str, text: str) -> typer.models.OptionInfo:
    """Declare a flag for a setting of ``TrainConfig``: absent unless given, its default shown in the help."""
    default = getattr(TrainConfig, flag.removeprefix("--").replace("-", "_"))
    shown = ",".join(default) or "all" if isinstance(default, tuple) else str(default)
    option: typer.models.OptionInfo = typer.Option(flag, help=text, show_default=shown)
    return option


def train(
    arch: Annotated[str | None, setting("--arch", f"Architecture: {', '.join(list_plugins('models'))}.")] = None,
    encoder: Annotated[
        str | None, setting("--encoder", "Encoder of segmentation-models-pytorch, or tu-NAME for one of timm.")
    ] = None,
    encoder_weights: Annotated[
        str | None,
        setting("--encoder-weights", "none, imagenet, PATH, or auto: ImageNet from an installed package, else none."),
    ] = None,
    decoder: Annotated[str | None, setting("--decoder", "Decoder of the siamese network: unet, fpn, manet, …")] = None,
    fusion: Annotated[Fusion | None, setting("--fusion", "How the siamese network joins the dates.")] = None,
    input_kind: Annotated[
        DifferenceInput | None, setting("--input", "What unetplusplus sees: the grey difference, or all bands joined.")
    ] = None,
    use_bands: Annotated[str | None, setting("--use-bands", "Bands to train on, with commas.")] = None,
    normalize: Annotated[
        NormalizeKind | None, setting("--normalize", "Per scene and date, per band too, or by fixed statistics.")
    ] = None,
    crop: Annotated[int | None, setting("--crop", "Side of a training crop [px].")] = None,
    batch_size: Annotated[int | None, setting("--batch-size", "Crops in a step.")] = None,
    epochs: Annotated[int | None, setting("--epochs", "Most epochs to train.")] = None,
    steps: Annotated[int | None, setting("--steps", "Steps in an epoch; 0 to see the tiles' area once.")] = None,
    patience: Annotated[int | None, setting("--patience", "Epochs without a better IoU before it stops.")] = None,
    lr: Annotated[float | None, setting("--lr", "Learning rate of the first epoch.")] = None,
    lr_decay: Annotated[float | None, setting("--lr-decay", "Factor on the learning rate after each epoch.")] = None,
    weight_decay: Annotated[float | None, setting("--weight-decay", "Weight decay of AdamW.")] = None,
    jitter: Annotated[float | None, setting("--jitter", "Largest change of contrast and brightness.")] = None,
    change_share: Annotated[float | None, setting("--change-share", "Share of crops drawn around change.")] = None,
    fold: Annotated[str | None, setting("--fold", "Fold held out for validation; auto is val, else 0.")] = None,
    seed: Annotated[int | None, setting("--seed", "Seed of weights, crops and augmentation.")] = None,
    config: Annotated[
        Path | None, typer.Option("--config", help="TOML file with any of these settings; flags win over it.")
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", help="Name of the run.", show_default="<arch>_<encoder>_fold<fold>")
    ] = None,
    data: options.DataOption = options.DEFAULT_DATA,
    out: Annotated[
        Path, typer.Option("--out", help="Folder that the run's folder is made in.")
    ] = options.DEFAULT_MODELS,
    device: options.DeviceOption = "auto",
    workers: options.WorkersOption = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run of this --name (default: the newest) where it stopped.")
    ] = False,
    overwrite: options.OverwriteOption = False,
    dry_run: options.DryRunOption = False,
    as_json: options.JsonOption = False,
) -> None:
    """Train a change network on the tiles of all folds but one.

    Reads tiles.csv and composites/; writes models/saved/<run>/ after every epoch.

    Example: satdiff train --arch siamese --encoder resnet34 --epochs 50

    Next: satdiff predict
    """
    flags = {
        "arch": arch,
        "encoder": encoder,
        "encoder_weights": encoder_weights,
        "decoder": decoder,
        "fusion": fusion,
        "input": input_kind,
        "use_bands": tuple(band.strip().lower() for band in use_bands.split(",")) if use_bands else None,
        "normalize": normalize,
        "crop": crop,
        "batch_size": batch_size,
        "epochs": epochs,
        "steps": steps,
        "patience": patience,
        "lr": lr,
        "lr_decay": lr_decay,
        "weight_decay": weight_decay,
        "jitter": jitter,
        "change_share": change_share,
        "fold": fold,
        "seed": seed,
    }
    from satdiff_cli import artifacts, checkpoint, experiment, pairing, tiling

    folder = checkpoint.resolve_run(name, out) if resume else None
    resolved = TrainConfig.resolve(folder / checkpoint.CONFIG_NAME if folder else config, flags)
    tiles = tiling.read_tiles(data)
    split = experiment.split_tiles(tiles, pairing.read_pairs(data), resolved.fold)
    if folder is None:
        folder = out / (name or f"{resolved.arch}_{resolved.encoder.removeprefix('tu-')}_fold{split.fold}")
        artifacts.check_output(folder, overwrite=overwrite or dry_run)
    on_gpu = checkpoint.pick_device(device).type == "cuda"
    job = experiment.Job(
        resolved,
        split,
        experiment.make_card(resolved, split, folder.name),
        folder,
        tile_size=max(max(tile.window.height, tile.window.width) for tile in tiles),
        device=device,
        # On a CPU the network itself takes all cores; loading beside it would only slow it down.
        workers=options.count_workers(workers) if workers is not None or on_gpu else 0,
        resume=resume,
    )
    options.say(
        f"train  {folder.name}: {resolved.arch} with {resolved.encoder} on {len(split.train_tiles)} tiles of "
        f"{len(job.card.train_sites)} sites, validation on {len(split.validation_tiles)} tiles of "
        f"{len(job.card.validation_sites)} sites (fold {split.fold}); "
        f"channels {', '.join(job.card.normalization.channels)}"
    )
    if dry_run:
        for key, value in resolved.as_dict().items():
            options.say(f"  {key} = {value}")
        return
    summary = run_with_progress(job)
    if summary.pretrained:
        taken = f", {summary.pretrained.taken} tensors" if summary.pretrained.taken else ""
        options.say(f"began  from {summary.pretrained.source}{taken}; computed in {summary.precision}")
    scores = summary.card.scores
    options.say(
        f"done   {summary.epochs} epochs{' (stopped early)' if summary.stopped_early else ''}; best epoch "
        f"{summary.card.epoch}: IoU {scores['iou']:.3f}, F1 {scores['f1']:.3f}, precision {scores['precision']:.3f}, "
        f"recall {scores['recall']:.3f} at threshold {summary.card.threshold:.3f} on fold {summary.card.fold}"
    )
    result = {"run": folder.name, "epochs": summary.epochs, "best_epoch": summary.card.epoch, **scores}
    next_command = f"satdiff predict {folder.name}{options.data_flag(data)}{models_flag(out)}"
    options.finish(result, path=folder, next_command=next_command, as_json=as_json)


def models_flag(models: Path) -> str:
    """Spell the folder of runs for a command to copy: nothing for the default."""
    return "" if models == options.DEFAULT_MODELS else f" --models {models}"


def run_with_progress(job: "experiment.Job") -> "training.TrainingSummary":
    """Train under a progress bar that shows epoch, loss and the best validation IoU."""
    from satdiff_cli import training

    with options.progress_bar("training", None) as bar:

        def show(progress: training.Progress) -> None:
            done = (progress.epoch - 1) * progress.steps + progress.step
            iou = f"IoU {progress.scores['iou']:.3f}" if progress.scores else ""
            note = f"epoch {progress.epoch}/{progress.epochs} loss {progress.loss:.3f} {iou}"
            bar.show(done, progress.epochs * progress.steps, note)

        return training.fit(job, show)
