"""``satdiff info``: say what a file or folder is, where it came from, what to type next."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from satdiff_cli.commands import _options as options


def info(
    path: Annotated[Path, typer.Argument(help="Any file or folder of satdiff, or a raster.")] = options.DEFAULT_DATA,
    as_json: options.JsonOption = False,
) -> None:
    """Say what an artifact is, who made it from what, and what to type next.

    Reads the artifact; writes nothing.

    Example: satdiff info models/saved/siamese_tf_efficientnet_lite0_fold0
    """
    from rich.table import Table

    facts, next_command = describe(path)
    if not as_json:
        table = Table(show_header=False, box=None)
        for name, value in facts.items():
            table.add_row(name, "\n".join(map(str, value)) if isinstance(value, list) else str(value))
        options.show(table)
    options.finish({**facts, "next": next_command}, path=None, next_command=next_command, as_json=as_json)


def describe(path: Path) -> tuple[dict[str, Any], str]:
    """Describe an artifact: facts by name, and the command to type next.

    Raises:
        ArtifactError: The path is missing, or nothing of satdiff.
    """
    from satdiff_cli import artifacts
    from satdiff_cli.errors import ArtifactError

    if not path.exists():
        raise ArtifactError(f"{path} does not exist", "satdiff demo makes an example")
    if path.is_dir():
        return describe_folder(path)
    if path.name == artifacts.TRIALS_CSV:
        return describe_sweep(path)
    by_suffix: dict[str, Callable[[Path], tuple[dict[str, Any], str]]] = {
        ".csv": describe_table,
        ".pkl": describe_prediction,
        ".json": describe_part,
        ".toml": describe_part,
        ".safetensors": describe_part,
        ".ckpt": describe_part,
    }
    return by_suffix.get(path.suffix.lower(), describe_raster)(path)


def describe_part(path: Path) -> tuple[dict[str, Any], str]:
    """Describe the run or folder that a file belongs to, or the scores in a file of ``satdiff evaluate``."""
    from satdiff_cli import artifacts
    from satdiff_cli.errors import ArtifactError

    if path.name.endswith("_scores.json"):
        values = artifacts.read_json(path)
        scores = [f"{name} {value}" for name, value in values.get("overall", {}).items()]
        return {"what": f"scores of a prediction ({path})", "threshold": values.get("threshold"), "scores": scores}, ""
    if any((path.parent / name).is_file() for name in ("model.json", artifacts.MANIFEST_NAME)):
        return describe_folder(path.parent)
    raise ArtifactError(f"{path} is nothing that satdiff wrote", "satdiff info FOLDER of a project or a run")


def describe_folder(path: Path) -> tuple[dict[str, Any], str]:
    """Describe a run, a folder with a manifest, a sweep, or a project folder."""
    from satdiff_cli import artifacts, checkpoint
    from satdiff_cli.errors import ArtifactError

    if (path / checkpoint.CARD_NAME).is_file():
        return describe_run(path)
    if (path / artifacts.MANIFEST_NAME).is_file():
        values = artifacts.read_json(path / artifacts.MANIFEST_NAME)
        if "pair_ids" in values.get("details", {}):
            return describe_prediction(path)
        if values["kind"] == "change map":
            return describe_change_map(path), ""
        return describe_manifest(path), f"satdiff tile {path.parent}"
    if (path / artifacts.TRIALS_CSV).is_file():
        return describe_sweep(path / artifacts.TRIALS_CSV)
    if (path / artifacts.PAIRS_CSV).is_file() or any(path.iterdir()):
        return describe_project(path)
    raise ArtifactError(f"{path} is empty", f"put scenes there (see the README), then: satdiff pair {path}")


def describe_manifest(path: Path) -> dict[str, Any]:
    """Describe where a folder artifact came from."""
    from satdiff_cli import artifacts

    values = artifacts.read_json(path / artifacts.MANIFEST_NAME)
    return {
        "what": f"{values['kind']} ({path})",
        "made": f"{values['created']} by satdiff {values['satdiff_version']}",
        "settings": [f"{name} = {value}" for name, value in values["config"].items()],
        "made from": f"{len(values['inputs'])} files",
        "details": [
            f"{name} = {value}" for name, value in values["details"].items() if name not in ("grids", "pair_ids")
        ],
    }


def describe_change_map(path: Path) -> dict[str, Any]:
    """Describe a change map by its manifest and its report."""
    from satdiff_cli import artifacts, mapping

    return describe_manifest(path) | mapping.summarize_report(artifacts.read_json(path / mapping.REPORT_NAME))


def describe_run(path: Path) -> tuple[dict[str, Any], str]:
    """Describe a run by its model card."""
    from satdiff_cli import artifacts, checkpoint

    card = checkpoint.read_card(path)
    is_finished = (path / artifacts.MANIFEST_NAME).is_file()
    facts = {
        "what": f"run {card.run} ({path})",
        "network": f"{card.arch}: {checkpoint.describe(card.parameters)}",
        "maps": f"{card.task}{': ' if card.class_names else ''}{', '.join(card.class_names)}",
        "sees": f"{card.dates} date{'s' * (card.dates > 1)} of {', '.join(card.normalization.channels)}, "
        f"normalised per {card.normalization.kind}",
        "trained on": f"{len(card.train_sites)} sites, validated on {len(card.validation_sites)} (fold {card.fold})",
        "weights": f"of epoch {card.epoch}" + (f"; threshold {card.threshold:.3f}" if card.task == "change" else ""),
        "validation": [f"{name} {value:.3f}" for name, value in card.scores.items()],
        "finished": "yes" if is_finished else "no",
    }
    if is_finished:
        facts["made"] = describe_manifest(path)["made"]
    return facts, f"satdiff predict {path.name}" if is_finished else f"satdiff train --resume --name {path.name}"


def describe_table(path: Path) -> tuple[dict[str, Any], str]:
    """Describe one of the CSV files."""
    from satdiff_cli import artifacts

    table = artifacts.read_table(path, ())
    facts: dict[str, Any] = {"what": f"table ({path})", "rows": len(table), "columns": ", ".join(table.columns)}
    kinds = {
        "pairs": (artifacts.PAIR_COLUMNS, f"satdiff tile {path.parent}"),
        "tiles": (artifacts.TILE_COLUMNS, f"satdiff train --arch siamese{options.data_flag(path.parent)}"),
        "report of satdiff pair": (artifacts.REPORT_COLUMNS, f"satdiff tile {path.parent}"),
        "trials of satdiff sweep": (artifacts.TRIAL_COLUMNS, ""),
        "submission": (("Id", "mask"), ""),
    }
    for kind, (columns, next_command) in kinds.items():
        if set(columns) <= set(table.columns):
            facts["what"] = f"{kind} ({path})"
            for column in ("fold", "status", "state"):
                if column in table.columns:
                    counts = table[column].value_counts().sort_index()
                    facts[column] = ", ".join(f"{value or '(none)'}: {count}" for value, count in counts.items())
            return facts, next_command
    return facts, f"satdiff pair {path} --format csv"


def describe_sweep(path: Path) -> tuple[dict[str, Any], str]:
    """Describe a sweep by the table of its trials, the best first."""
    from satdiff_cli import artifacts

    facts, _ = describe_table(path)
    trials = artifacts.read_table(path, artifacts.TRIAL_COLUMNS).to_dict("records")
    if not trials or trials[0]["state"] != "complete":
        return facts, ""
    best: dict[Any, str] = trials[0]
    facts["best"] = [f"{name} = {value}" for name, value in best.items() if value]
    trained = path.parent / "runs"
    models = options.models_flag(trained) if (trained / best["run"]).is_dir() else ""
    return facts, f"satdiff predict {best['run']}{models}"


def describe_prediction(path: Path) -> tuple[dict[str, Any], str]:
    """Describe a prediction, pickle or folder."""
    from satdiff_cli import predictions
    from satdiff_cli.errors import ArtifactError

    try:
        with predictions.open_prediction(path) as reader:
            header = reader.header
    except ArtifactError as error:
        if "bare list" not in error.message:
            raise
        return {"what": error.message}, f"satdiff submit {path}"
    threshold = "unknown" if header.threshold is None else f"{header.threshold:.3f}"
    told = {"classes": ", ".join(item.name for item in header.classes)} if header.classes else {"threshold": threshold}
    facts = {"what": f"prediction of {header.run} ({path})", **told, "pairs": list(header.pair_ids)}
    if path.is_dir():
        facts |= {name: value for name, value in describe_manifest(path).items() if name in ("made", "settings")}
    verb = "evaluate" if header.run.startswith("oof_") or header.classes else "submit"
    return facts, f"satdiff {verb} {path}"


def describe_raster(path: Path) -> tuple[dict[str, Any], str]:
    """Describe a raster: composite, probability or anything else."""
    from satdiff_cli import raster

    facts = raster.describe_raster(path)
    return facts, "satdiff pair --help" if facts["what"].startswith("scene") else ""


def describe_project(path: Path) -> tuple[dict[str, Any], str]:
    """Describe how far the work in a project folder has come."""
    from satdiff_cli import artifacts, predictions

    found = predictions.list_predictions(path / artifacts.PREDICTIONS_DIR)
    steps = [
        ("pairs", (path / artifacts.PAIRS_CSV).is_file(), f"satdiff pair {path}"),
        ("tiles", (path / artifacts.TILES_CSV).is_file(), f"satdiff tile {path}"),
        ("predictions", bool(found), f"satdiff train --arch siamese{options.data_flag(path)}"),
        ("submission", (path / "submission.csv").is_file(), f"satdiff submit{options.data_flag(path)}"),
    ]
    facts: dict[str, Any] = {"what": f"project folder ({path})"}
    facts |= {name: "yes" if is_there else "not yet" for name, is_there, _ in steps}
    if found:
        facts["predictions"] = [item.name for item in found]
    return facts, next((command for _, is_there, command in steps if not is_there), "")
