"""Options and habits that the verbs share: the same name means the same everywhere."""

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from satdiff_cli.config import MAX_SEED, Coregister, Engine, Resampling, VectorFormat, Zeros

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.progress import Progress, TaskID

    from satdiff_cli.config import Task

DEFAULT_DATA = Path("data")
DEFAULT_MODELS = Path("models/saved")

DataOption = Annotated[Path, typer.Option("--data", help="Project folder with pairs.csv and composites.")]
ModelsOption = Annotated[Path, typer.Option("--models", help="Folder with the saved runs.")]
MetricOption = Annotated[
    str, typer.Option("--metric", help="With the run best: validation score to choose by.", show_default="val_f1")
]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace what is there already.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and write nothing.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the summary as JSON on stdout.")]
SeedOption = Annotated[int, typer.Option("--seed", min=0, max=MAX_SEED, help="Seed of everything drawn at random.")]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")]
EngineOption = Annotated[
    Engine, typer.Option("--engine", help="Work in this process, or on a Ray cluster (extra: ray).")
]
AddressOption = Annotated[
    str, typer.Option("--address", help="With --engine ray: the cluster.", show_default="one on this machine")
]
WorkersOption = Annotated[
    int | None, typer.Option("--workers", min=0, help="Processes or threads that read data.", show_default="by machine")
]

BandsOption = Annotated[
    str | None,
    typer.Option("--bands", help="Band names of a date, with commas.", show_default="from the files, or by number"),
]
AfterBandsOption = Annotated[
    str | None, typer.Option("--after-bands", help="Those of the after date.", show_default="as the before date's")
]
ResamplingOption = Annotated[
    Resampling, typer.Option("--resampling", help="Kernel for files that lie on another grid.")
]
CoregisterOption = Annotated[
    Coregister, typer.Option("--coregister", help="Move the after date onto the before date: not, as a whole, locally.")
]
MaxShiftOption = Annotated[
    float, typer.Option("--max-shift", min=0, help="Largest shift between the dates that is corrected [px].")
]
ZerosOption = Annotated[
    Zeros,
    typer.Option("--zeros", help="Where pixels that are 0 in every band saw nothing, in files without nodata value."),
]
MinAreaOption = Annotated[str, typer.Option("--min-area", help="Smallest change to keep, such as 100m2 or 25px.")]
MaxHoleOption = Annotated[str, typer.Option("--max-hole", help="Holes in a change up to this area are filled.")]
VectorOption = Annotated[VectorFormat, typer.Option("--vector", help="Format of the polygons.")]
StrictOption = Annotated[
    bool, typer.Option("--strict", help="Fail where the shift is larger, or cannot be told reliably.")
]


class Bar:
    """A progress bar.

    Args:
        progress: The display.
        task: Its line.
    """

    def __init__(self, progress: "Progress", task: "TaskID") -> None:
        self._progress = progress
        self._task = task

    def advance(self, count: int = 1) -> None:
        """Move on by a number of items."""
        self._progress.advance(self._task, count)

    def name(self, what: str) -> None:
        """Say what is being done."""
        self._progress.update(self._task, description=what)

    def show(self, done: int, total: int, note: str = "") -> None:
        """Show how many items of how many are done, and a note."""
        self._progress.update(self._task, completed=done, total=total, note=note)


def count_workers(given: int | None) -> int:
    """Return the given number of workers, else one for each CPU that this process may use."""
    return (os.cpu_count() or 1) if given is None else given


def split_names(names: str | None) -> tuple[str, ...]:
    """Take a list of names with commas apart."""
    return tuple(name.strip().lower() for name in names.split(",")) if names else ()


def say(text: str) -> None:
    """Print a line of a summary on stderr."""
    sys.stderr.write(f"{text}\n")


def show(result: "RenderableType") -> None:
    """Print a table, or lines, on stdout."""
    from rich.console import Console

    Console(highlight=False, markup=False).print(result, soft_wrap=isinstance(result, str))


def finish(summary: dict[str, Any], *, path: Path | None, next_command: str, as_json: bool) -> None:
    """End a verb: the result on stdout (its path, or the summary as JSON), the next command on stderr."""
    if as_json:
        sys.stdout.write(json.dumps(summary, indent=2, default=str) + "\n")
    elif path is not None:
        sys.stdout.write(f"{path}\n")
    if next_command:
        say(f"next   {next_command}")


def refuse_idle(given: Mapping[str, bool], *, needs: str, hint: str) -> None:
    """Refuse options that would do nothing.

    Args:
        given: Options, each with whether it was given.
        needs: Without what they do nothing.
        hint: What to type.

    Raises:
        ConfigError: One of them was given.
    """
    from satdiff_cli.errors import ConfigError

    names = [name for name, is_given in given.items() if is_given]
    if names:
        raise ConfigError(f"{', '.join(names)} would do nothing {needs}", hint)


def find_runs(names: Sequence[str], models: Path, metric: str, task: "Task | None" = None) -> list[Path]:
    """Find runs by name or path, and say which one is the best where that is asked for.

    Args:
        names: Names, paths, or ``best``: the best by a validation score of those that fit the task.
        models: Folder of runs.
        metric: Name of that score, with or without ``val_``; empty for the default.
        task: What the best one is to map.

    Raises:
        ConfigError: A score is named and no run is called best.
    """
    from satdiff_cli import checkpoint

    if checkpoint.BEST_RUN not in names:
        refuse_idle(
            {"--metric": metric != ""},
            needs=f"without the run {checkpoint.BEST_RUN}",
            hint=f"name the run {checkpoint.BEST_RUN}, or leave out --metric",
        )
    score = (metric or checkpoint.DEFAULT_METRIC).removeprefix("val_")
    found = [checkpoint.resolve_run(name, models, metric=score, task=task) for name in names]
    for name, run in zip(names, found, strict=True):
        if name == checkpoint.BEST_RUN:
            say(f"best   {run.name}: {score} {checkpoint.read_card(run).scores[score]:.3f}")
    return found


@contextmanager
def progress_bar(label: str, total: float | None) -> Iterator["Bar"]:
    """Show a progress bar with time left, on a terminal only."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn() if total is None else MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        yield Bar(progress, progress.add_task(label, total=total, note=""))


def models_flag(models: Path) -> str:
    """Spell the folder of runs for a command to copy: nothing for the default."""
    return "" if models == DEFAULT_MODELS else f" --models {models}"


def data_flag(data: Path) -> str:
    """Spell the project folder for a command to copy: nothing for the default."""
    return "" if data == DEFAULT_DATA else f" --data {data}"
