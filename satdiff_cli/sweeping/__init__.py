"""Search settings of training and prediction with Optuna: the study, which goes on where it was stopped."""

import contextlib
import csv
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from satdiff_cli import artifacts
from satdiff_cli.errors import ConfigError, OutputExistsError, SatdiffError
from satdiff_cli.locking import take_lock
from satdiff_cli.sweeping.space import Choices, Interval, PredictSettings, SweepConfig, is_idle, spell_label
from satdiff_cli.sweeping.trials import Bench, Drawn, TrialPrunedError, find_runs, run_trial
from satdiff_cli.training import TrainingInterruptedError

if TYPE_CHECKING:
    import optuna

__all__ = [
    "STATES",
    "Bench",
    "Finished",
    "Search",
    "SweepConfig",
    "find_runs",
    "prepare_folder",
    "run_sweep",
    "spell_predict_flags",
]

STUDY_NAME, LOCK_NAME = "study.db", ".lock"
UNPRUNED_TRIALS, UNPRUNED_STEPS = 4, 1  # that the median is taken of, and that each trial is given
_CONFIG, _DRAWN, _RESULT, _REASON = "config", "drawn", "result", "reason"

State = Literal["complete", "pruned", "failed"]
STATES: tuple[State, ...] = get_args(State)


@dataclass(frozen=True)
class Finished:
    """A trial that came to an end.

    Attributes:
        number: Of the trial, counted from 0.
        state: Pruned trials were stopped as they fell behind the median of the others; failed ones are impossible.
        score: Validation score; of a pruned trial the last one before it was stopped; None of a failed one.
        settings: What was drawn, by setting.
        run: Name of its run; empty for a failed one.
        reason: Why it failed.
        seconds: Time that it took.
    """

    number: int
    state: State
    score: float | None
    settings: Mapping[str, Any]
    run: str = ""
    reason: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class Search:
    """Say how long a sweep searches and who is told.

    Attributes:
        trials: Trials in all, those of earlier calls included.
        seed: Of the draws.
        prunes: Whether trials that fall behind are stopped.
        on_trial: Called with each trial that ended.
    """

    trials: int = 20
    seed: int = 0
    prunes: bool = True
    on_trial: Callable[[Finished], None] = field(default=lambda _: None)


def run_sweep(sweep: SweepConfig, bench: Bench, search: Search) -> list[Finished]:
    """Run trials until there are as many as wanted, and write them into ``trials.csv``, the best first.

    Stopped at any moment, the next call repeats the trial that was stopped, whose training goes on from its last epoch.

    Returns:
        All trials of the study that came to an end, the best first.

    Raises:
        ConfigError: Optuna is not installed, or the folder holds another sweep.
        OutputExistsError: Another process is at it.
    """
    optuna = import_optuna()
    with lock_folder(bench.folder):
        study = open_study(sweep, bench, search)
        repeat_stopped(study)
        while (done := len(list_finished(study))) < search.trials:
            # A sampler that starts anew with every call would repeat its first draws.
            study.sampler = optuna.samplers.TPESampler(seed=search.seed + done)
            finish_trial(study, sweep, bench)
            finished = list_finished(study)
            write_trials(bench.folder / artifacts.TRIALS_CSV, finished, bench.metric)
            search.on_trial(max(finished, key=lambda trial: trial.number))
    return list_finished(study)


def import_optuna() -> Any:
    """Import Optuna without its remarks.

    Raises:
        ConfigError: It is not installed.
    """
    try:
        import optuna
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"a sweep needs a package that is not installed: {error.name}", "pip install 'satdiff[sweep]'"
        ) from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def prepare_folder(folder: Path, *, overwrite: bool) -> None:
    """Make sure that a folder is free for a sweep, or holds one; with ``overwrite`` remove the one it holds.

    Raises:
        OutputExistsError: It holds something else.
    """
    is_sweep = (folder / STUDY_NAME).is_file()
    if folder.exists() and not is_sweep and any(item.name != LOCK_NAME for item in folder.iterdir()):
        raise OutputExistsError(f"{folder} is there already and holds no sweep", "choose another --out")
    if is_sweep and overwrite:
        shutil.rmtree(folder)


@contextlib.contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Make a folder and keep other processes out of it: they would take a running trial for one that was stopped.

    Raises:
        OutputExistsError: Another process is in it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        try:
            take_lock(stack, folder / LOCK_NAME)
        except BlockingIOError:
            raise OutputExistsError(
                f"another satdiff sweep is at work in {folder}", "wait until it ends, or choose another --out"
            ) from None
        yield


def open_study(sweep: SweepConfig, bench: Bench, search: Search) -> "optuna.Study":
    """Create the study of a sweep, or open the one there is.

    Raises:
        ConfigError: The one there is searches something else.
    """
    optuna = import_optuna()
    pruner = (
        optuna.pruners.MedianPruner(n_startup_trials=UNPRUNED_TRIALS, n_warmup_steps=UNPRUNED_STEPS)
        if search.prunes
        else optuna.pruners.NopPruner()
    )
    study = optuna.create_study(
        storage=f"sqlite:///{bench.folder / STUDY_NAME}",
        study_name="satdiff",
        direction="maximize",
        pruner=pruner,
        load_if_exists=True,
    )
    config = json.loads(json.dumps({**sweep.as_dict(), "metric": bench.metric, "preset": bench.preset}))
    stored = study.user_attrs.get(_CONFIG)
    if stored is None:
        study.set_user_attr(_CONFIG, config)
    elif stored != config:
        changed = [name for name in config if config[name] != stored.get(name)]
        raise ConfigError(
            f"{bench.folder} holds a sweep with other settings: {', '.join(changed)}",
            "choose another --out, or begin again with --overwrite",
        )
    return study


def repeat_stopped(study: "optuna.Study") -> None:
    """Put trials that no process is at any more, as it was stopped, first in the queue again."""
    optuna = import_optuna()
    running = optuna.trial.TrialState.RUNNING
    for trial in study.get_trials(states=[running]):
        study.enqueue_trial(trial.params)
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)


def finish_trial(study: "optuna.Study", sweep: SweepConfig, bench: Bench) -> None:
    """Draw settings and try them; settings that turn out to be impossible fail, and the study knows why.

    Raises:
        TrainingInterruptedError: It was stopped from the keyboard.
    """
    states, started = import_optuna().trial.TrialState, time.monotonic()
    trial = study.ask()
    drawn = draw(trial, sweep)
    trial.set_user_attr(_DRAWN, {name: spell_label(value) for name, value in drawn.as_dict().items()})

    def judge(score: float, step: int) -> bool:
        trial.report(score, step)
        return trial.should_prune()

    score, state, run = None, states.COMPLETE, ""
    try:
        outcome = run_trial(sweep, drawn, bench, judge)
        score, run = outcome.score, outcome.run
    except TrainingInterruptedError:
        raise
    except TrialPrunedError as pruned:
        state, run = states.PRUNED, pruned.run
    except SatdiffError as error:
        state = states.FAIL
        trial.set_user_attr(_REASON, error.message)
    trial.set_user_attr(_RESULT, {"run": run, "seconds": round(time.monotonic() - started, 1)})
    study.tell(trial, score, state=state)


def draw(trial: "optuna.Trial", sweep: SweepConfig) -> Drawn:
    """Draw a value of everything that is searched, but for settings of a cascade where there is none."""
    training = {name: draw_value(trial, name, values) for name, values in sweep.space.items()}
    predict = dict(sweep.predict)
    searched = sorted(sweep.predict_space, key=lambda name: name != "cascade")  # what the others depend on comes first
    for name in searched:
        if not is_idle(name, predict):
            predict[name] = draw_value(trial, f"predict.{name}", sweep.predict_space[name])
    return Drawn(training, {name: predict[name] for name in searched if name in predict})


def draw_value(trial: "optuna.Trial", name: str, values: Choices | Interval) -> Any:
    """Draw one value."""
    if isinstance(values, Choices):
        return values.options[trial.suggest_categorical(name, list(values.options))]  # type: ignore[index]
    if values.is_whole:
        return trial.suggest_int(name, int(values.low), int(values.high), step=int(values.step or 1), log=values.log)
    return trial.suggest_float(name, values.low, values.high, step=values.step, log=values.log)


def list_finished(study: "optuna.Study") -> list[Finished]:
    """List the trials that came to an end, the best first, those that were pruned or failed last."""
    states = import_optuna().trial.TrialState
    names: dict[Any, State] = {states.COMPLETE: "complete", states.PRUNED: "pruned", states.FAIL: "failed"}
    finished = [
        Finished(
            trial.number,
            names[trial.state],
            trial.value,
            trial.user_attrs[_DRAWN],
            reason=trial.user_attrs.get(_REASON, ""),
            **trial.user_attrs[_RESULT],
        )
        for trial in study.get_trials()
        if trial.state in names and _RESULT in trial.user_attrs  # which those that were stopped do not have
    ]
    return sorted(finished, key=lambda trial: (STATES.index(trial.state), -(trial.score or 0), trial.number))


def spell_predict_flags(sweep: SweepConfig, trial: Finished) -> str:
    """Spell the settings of prediction of a trial as flags of ``satdiff predict``."""
    prefix = "predict."
    drawn = {name.removeprefix(prefix): value for name, value in trial.settings.items() if name.startswith(prefix)}
    return PredictSettings(**{**sweep.predict, **drawn}).spell_flags()


def write_trials(path: Path, finished: Sequence[Finished], metric: str) -> None:
    """Write one row a trial; what a trial did not draw stays empty."""
    searched = sorted({name for trial in finished for name in trial.settings})
    columns = ["trial", "state", metric, *searched, "seconds", "run", "reason"]
    with artifacts.write_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, columns)
        writer.writeheader()
        for trial in finished:
            score = "" if trial.score is None else f"{trial.score:.6g}"
            facts = {"trial": trial.number, "state": trial.state, metric: score, **trial.settings}
            writer.writerow({**facts, "seconds": trial.seconds, "run": trial.run, "reason": trial.reason})
