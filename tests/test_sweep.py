"""Tests of satdiff_cli.sweeping and satdiff sweep."""

import json
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import pytest
import tomli_w
from command_line import satdiff, succeed
from conftest import RUN
from land_cover import write_set

from satdiff_cli import checkpoint, experiment, pairing, sweeping, tiling
from satdiff_cli.config import read_toml
from satdiff_cli.errors import ConfigError, OutputExistsError
from satdiff_cli.sweeping import Bench, Search, SweepConfig, find_runs, run_sweep
from satdiff_cli.sweeping.space import Choices, Interval, PredictSettings
from satdiff_cli.sweeping.trials import Drawn, TrialPrunedError, run_trial

BASE = {
    "arch": "siamese",
    "encoder": "tu-test_efficientnet",
    "encoder_weights": "none",
    "crop": 64,
    "batch_size": 2,
    "steps": 1,
    "epochs": 2,
}


def write_sweep(path: Path, **values: Any) -> Path:
    """Write a sweep as TOML."""
    path.write_text(tomli_w.dumps(values), encoding="utf-8")
    return path


def make_bench(project: Path, **values: Any) -> Bench:
    """Make a bench on the data of a project."""
    data = project / "data"
    planner = experiment.Planner(
        tiling.read_tiles(data), pairing.read_pairs(data), experiment.Machine(device="cpu", cache_gb=0.1)
    )
    return Bench(planner, data, project / "sweep", **values)


def test_a_sweep_is_read_with_its_choices_and_intervals(tmp_path: Path) -> None:
    path = tmp_path / "sweep.toml"
    path.write_text(
        'epochs = 3\nbatch-size = 4\n[search]\nlr = {low = 1e-5, high = 1e-2, log = true}\nloss = ["dice", "bce"]\n'
        "crop = {low = 64, high = 256, step = 32}\nuse_bands = [['red'], ['red', 'nir']]\n"
        "[predict]\noverlap = 32\ncascade = true\n"
        "[search.predict]\nwindow = [64, 128]\ncascade_weight = {low = 0, high = 1}\n",
        encoding="utf-8",
    )
    sweep = SweepConfig.read(path)
    assert sweep.base == {"epochs": 3, "batch_size": 4}
    assert sweep.space == {
        "lr": Interval(1e-5, 1e-2, log=True),
        "loss": Choices({"dice": "dice", "bce": "bce"}),
        "crop": Interval(64, 256, step=32, is_whole=True),
        "use_bands": Choices({"red": ("red",), "red+nir": ("red", "nir")}),
    }
    assert sweep.predict == {"overlap": 32, "cascade": True}
    assert sweep.predict_space == {"window": Choices({64: 64, 128: 128}), "cascade_weight": Interval(0.0, 1.0)}
    assert json.loads(json.dumps(sweep.as_dict())) == json.loads(json.dumps(SweepConfig.read(path).as_dict()))


@pytest.mark.parametrize(
    ("values", "message", "hint"),
    [
        ({"search": {"learning_rat": [0.1]}}, "unknown setting 'learning_rat'", ""),
        ({"search": {"batchsize": [4]}}, "unknown setting 'batchsize'", "batch_size"),
        ({"epoch": 3, "search": {"lr": [0.1]}}, "unknown setting 'epoch'", "epochs"),
        ({"search": {"predict": {"windo": [64]}}}, "unknown setting 'windo'", "window"),
        ({"predict": {"blend": "han"}, "search": {"lr": [0.1]}}, "blend is 'han'", "hann"),
        ({"search": {"lr": {"low": 0.1, "high": 1.0, "lg": True}}}, "unknown key 'lg'", "log"),
        ({"search": {"lr": {"low": 1.0, "high": 0.1}}}, "expected low below high", ""),
        ({"search": {"lr": {"low": 0.1}}}, "no two numbers", "list"),
        ({"search": {"loss": {"low": "bce", "high": "dice"}}}, "no two numbers", "list"),
        ({"search": {"lr": {"low": 0.0, "high": 0.1, "log": True}}}, "expected low below high", "above 0"),
        ({"search": {"lr": {"low": 0.0, "high": 0.1}}}, "lr is 0.0, expected more than 0", ""),
        ({"search": {"crop": [64, 0]}}, "crop is 0, expected more than 0", ""),
        ({"search": {"crop": ["64"]}}, "expected int", ""),
        ({"search": {"lr": 0.1}}, "expected a list of values or a table", "lr = "),
        ({"search": {"lr": []}}, "expected a list of values or a table", "lr = "),
        ({"search": 3}, "expected a table", "[search]"),
        ({"epochs": 3}, "searches nothing", "[search]"),
        ({"epochs": 3, "search": {"predict": {"window": [64]}}}, "epochs would do nothing", "search"),
        ({"search": {"predict": {"window": [16]}}}, "window of 16 px", "32"),
        ({"search": {"predict": {"cascade_factor": [2.0, 3.0]}}}, "would do nothing without a cascade", "cascade = "),
        ({"predict": {"window": 64}, "search": {"lr": [0.1]}}, "would do nothing", "search.predict"),
    ],
)
def test_a_sweep_that_has_no_sense_is_refused(tmp_path: Path, values: Any, message: str, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        SweepConfig.read(write_sweep(tmp_path / "sweep.toml", **values))
    assert message in caught.value.message
    assert hint in caught.value.hint


def test_settings_of_a_cascade_are_drawn_only_where_there_is_one(tmp_path: Path) -> None:
    search = {"predict": {"cascade_weight": [0.2, 0.5], "cascade": [False, True], "window": [64, 96]}}
    sweep = SweepConfig.read(write_sweep(tmp_path / "sweep.toml", search=search))
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    drawn = [sweeping.draw(study.ask(), sweep).predict for _ in range(30)]
    assert {settings["cascade"] for settings in drawn} == {False, True}
    assert {settings["window"] for settings in drawn} == {64, 96}
    assert all(("cascade_weight" in settings) == settings["cascade"] for settings in drawn)


def test_drawn_values_lie_in_their_intervals(tmp_path: Path) -> None:
    search = {"lr": {"low": 1e-4, "high": 1e-2, "log": True}, "crop": {"low": 64, "high": 128, "step": 32}}
    sweep = SweepConfig.read(write_sweep(tmp_path / "sweep.toml", search=search))
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    drawn = [sweeping.draw(study.ask(), sweep).training for _ in range(40)]
    assert all(1e-4 <= settings["lr"] <= 1e-2 for settings in drawn)
    assert {settings["crop"] for settings in drawn} == {64, 96, 128}


def test_flags_of_predict_are_spelled_where_they_differ_from_the_default() -> None:
    assert PredictSettings().spell_flags() == ""
    flags = PredictSettings(window=256, blend="gaussian", cascade=True, cascade_hard=False, coarsest=2).spell_flags()
    assert flags == "--window 256 --blend gaussian --cascade --cascade-soft --coarsest 2"


@pytest.mark.slow
def test_a_sweep_of_training_goes_on_where_it_was_and_ranks_its_trials(project: Path) -> None:
    config = write_sweep(
        project / "lr.toml", **BASE, search={"lr": {"low": 1e-4, "high": 1e-2, "log": True}, "loss": ["dice", "bce"]}
    )
    arguments = ("sweep", "--config", config, "--device", "cpu", "--json")
    first = json.loads(succeed(*arguments, "--trials", 2, cwd=project).out)
    folder = project / "models" / "sweeps" / "lr"
    before = pd.read_csv(folder / "trials.csv")
    outcome = succeed(*arguments, "--trials", 3, cwd=project)
    summary, rows = json.loads(outcome.out), pd.read_csv(folder / "trials.csv")
    assert (first["trials"], summary["trials"], len(rows)) == (2, 3, 3)
    kept = rows[rows["trial"].isin(before["trial"])].sort_values("trial").reset_index(drop=True)
    pd.testing.assert_frame_equal(kept, before.sort_values("trial").reset_index(drop=True))
    assert rows["iou"].is_monotonic_decreasing
    assert rows["lr"].nunique() == 3
    assert rows["lr"].between(1e-4, 1e-2).all()
    best = summary["best"]
    assert best["iou"] == pytest.approx(rows["iou"].max(), rel=1e-5)
    card = checkpoint.read_card(folder / "runs" / best["run"])
    assert card.scores["iou"] == best["iou"]
    stored = read_toml(folder / "runs" / best["run"] / "config.toml")
    assert stored["lr"] == best["settings"]["lr"]
    assert stored["loss"] == best["settings"]["loss"]
    assert f"satdiff predict {best['run']} --models" in outcome.err
    told = json.loads(succeed("info", folder, "--json", cwd=project).out)
    assert told["state"] == "complete: 3"
    assert f"run = {best['run']}" in told["best"]
    assert told["next"] == f"satdiff predict {best['run']} --models {folder / 'runs'}"
    other = write_sweep(project / "other.toml", **BASE, search={"lr": [1e-3]})
    refused = satdiff("sweep", "--config", other, "--out", folder, cwd=project)
    assert refused.code == 1
    assert "other settings: search" in refused.err
    again = succeed(
        "sweep", "--config", other, "--out", folder, "--trials", 1, "--overwrite", "--device", "cpu", cwd=project
    )
    assert "complete" in again.out
    assert len(list((folder / "runs").iterdir())) == 1


@pytest.mark.slow
def test_the_score_of_searched_prediction_is_that_of_evaluate(project: Path) -> None:
    config = write_sweep(project / "windows.toml", predict={"overlap": 32}, search={"predict": {"window": [96]}})
    summary = json.loads(
        succeed(
            "sweep", "--config", config, "--run", "best", "--trials", 1, "--json", "--device", "cpu", cwd=project
        ).out
    )
    predict = ("predict", RUN, "--out-of-fold", "--allow-missing", "--window", 96, "--overlap", 32, "--device", "cpu")
    prediction = succeed(*predict, "--no-pickle", cwd=project).out.strip()  # a pickle rounds to half precision
    scores = json.loads(succeed("evaluate", prediction, "--json", cwd=project).out)
    assert summary["best"]["iou"] == pytest.approx(scores["best_on_these_labels"]["iou"])
    assert summary["best"]["run"] == RUN
    assert not [path for path in (project / "models/sweeps/windows").iterdir() if path.name.startswith(".trial")]


@pytest.mark.slow
def test_impossible_settings_fail_and_the_others_are_tried(project: Path) -> None:
    search = {"predict": {"window": [64, 96], "overlap": [80]}}
    config = write_sweep(project / "windows.toml", search=search)
    arguments = ("sweep", "--config", config, "--run", RUN, "--device", "cpu")
    outcome = succeed(*arguments, "--trials", 6, cwd=project)
    rows = pd.read_csv(project / "models/sweeps/windows/trials.csv", keep_default_na=False)
    assert set(rows["state"]) == {"complete", "failed"}
    assert set(rows.loc[rows["state"] == "failed", "predict.window"]) == {64}
    assert rows.loc[rows["state"] == "failed", "reason"].str.contains("overlap 80 px is impossible").all()
    assert set(rows.loc[rows["state"] == "complete", "predict.window"]) == {96}
    assert "--window 96 --overlap 80" in outcome.err
    hopeless = write_sweep(project / "hopeless.toml", search={"predict": {"window": [64], "overlap": [80]}})
    refused = satdiff("sweep", "--config", hopeless, "--run", RUN, "--trials", 1, "--device", "cpu", cwd=project)
    assert refused.code == 1
    assert "none of 1 trials came to its end" in refused.err


@pytest.mark.slow
def test_a_trial_that_falls_behind_is_pruned_after_an_epoch_and_its_run_is_kept(project: Path) -> None:
    bench = make_bench(project)
    judged = []

    def judge(score: float, step: int) -> bool:
        judged.append((step, score))
        return True

    with pytest.raises(TrialPrunedError) as caught:
        run_trial(SweepConfig(BASE, space={"lr": Choices({0.001: 0.001})}), Drawn({"lr": 0.001}), bench, judge)
    history = pd.read_csv(bench.runs / caught.value.run / "history.csv")
    assert [step for step, _ in judged] == [1]
    assert history["epoch"].tolist() == [1]
    assert judged[0][1] == pytest.approx(history["iou"][0], rel=1e-5)


@pytest.mark.slow
def test_the_study_prunes_what_is_worse_than_the_median_of_the_trials_before(project: Path) -> None:
    bench = make_bench(project)
    bench.folder.mkdir()
    sweep = SweepConfig({**BASE, "epochs": 3}, space={"lr": Choices({0.001: 0.001})})
    study = sweeping.open_study(sweep, bench, Search())
    for _ in range(sweeping.UNPRUNED_TRIALS):
        study.add_trial(
            optuna.trial.create_trial(
                params={"lr": 0.001},
                distributions={"lr": optuna.distributions.CategoricalDistribution([0.001])},
                value=0.99,
                intermediate_values={1: 0.99, 2: 0.99, 3: 0.99},
            )
        )
    finished = run_sweep(sweep, bench, Search(trials=1))
    assert [trial.state for trial in finished] == ["pruned"]
    assert finished[0].score is not None
    assert finished[0].score < 0.99
    history = pd.read_csv(bench.runs / finished[0].run / "history.csv")
    assert len(history) < 3
    unpruned = run_sweep(sweep, bench, Search(trials=2, prunes=False))
    assert [trial.state for trial in unpruned] == ["complete", "pruned"]
    assert len(pd.read_csv(bench.runs / unpruned[0].run / "history.csv")) == 3, "the same settings: the run went on"


@pytest.mark.slow
def test_a_trial_that_was_stopped_is_repeated_with_the_same_settings(project: Path) -> None:
    bench = make_bench(project, given=find_runs(RUN, project / "models" / "saved", "iou", "change"))
    bench.folder.mkdir()
    sweep = SweepConfig(predict={"overlap": 16}, predict_space={"window": Interval(64, 128, is_whole=True)})
    stopped = sweeping.draw(sweeping.open_study(sweep, bench, Search()).ask(), sweep)
    told: list[sweeping.Finished] = []
    finished = run_sweep(sweep, bench, Search(trials=1, on_trial=told.append))
    assert [trial.settings for trial in finished] == [{"predict.window": stopped.predict["window"]}]
    assert told == finished
    assert run_sweep(sweep, bench, Search(trials=1)) == finished, "there is nothing left to do"


@pytest.mark.slow
def test_a_sweep_of_land_cover_trains_predicts_and_raises_the_weighted_f1(tmp_path: Path) -> None:
    write_set(tmp_path / "data")
    succeed("pair", "data", cwd=tmp_path)
    succeed("tile", "data", "--size", 96, "--overlap", 16, cwd=tmp_path)
    base = {name: value for name, value in BASE.items() if name != "arch"}
    config = write_sweep(
        tmp_path / "cover.toml",
        **base,
        search={"elevation_alpha": [0.0, 10.0], "predict": {"cascade": [True]}},
        predict={"window": 64, "overlap": 16},
    )
    arguments = ("sweep", "--config", config, "--trials", 2, "--json", "--device", "cpu")
    summary = json.loads(succeed(*arguments, cwd=tmp_path).out)
    best = summary["best"]
    folder = tmp_path / "models" / "sweeps" / "cover"
    predict = ("predict", best["run"], "--models", folder / "runs", "--out-of-fold", "--allow-missing", "--no-pickle")
    flags = ("--window", 64, "--overlap", 16, "--cascade", "--device", "cpu")
    prediction = succeed(*predict, *flags, cwd=tmp_path).out.strip()
    scores = json.loads(succeed("evaluate", prediction, "--json", cwd=tmp_path).out)
    assert best["f1"] == pytest.approx(scores["overall"]["f1"])
    assert checkpoint.read_card(folder / "runs" / best["run"]).task == "landcover"
    rows = pd.read_csv(folder / "trials.csv")
    assert rows["f1"].max() == pytest.approx(best["f1"], rel=1e-5)
    assert rows["predict.cascade"].all()


def test_two_processes_do_not_work_on_one_sweep(tmp_path: Path) -> None:
    with (
        sweeping.lock_folder(tmp_path),
        pytest.raises(OutputExistsError, match="another satdiff sweep"),
        sweeping.lock_folder(tmp_path),
    ):
        pass


def test_a_folder_with_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("kept", encoding="utf-8")
    for overwrite in (False, True):
        with pytest.raises(OutputExistsError, match="holds no sweep"):
            sweeping.prepare_folder(tmp_path, overwrite=overwrite)
    assert (tmp_path / "mine.txt").read_text(encoding="utf-8") == "kept"


def test_an_unknown_metric_and_a_missing_file_are_refused(project: Path) -> None:
    config = write_sweep(project / "lr.toml", search={"lr": [0.1]})
    outcome = satdiff("sweep", "--config", config, "--metric", "val_iuo", cwd=project)
    assert outcome.code == 1
    assert "unknown metric 'iuo'" in outcome.err
    assert "iou" in outcome.err.split("hint")[1]
    missing = satdiff("sweep", "--config", "nothing.toml", cwd=project)
    assert missing.code == 1
    assert "cannot read nothing.toml" in missing.err


def test_a_dry_run_writes_nothing_and_names_what_is_searched(project: Path) -> None:
    config = write_sweep(project / "lr.toml", search={"lr": {"low": 0.001, "high": 0.1, "log": True}})
    outcome = succeed("sweep", "--config", config, "--dry-run", cwd=project)
    assert "lr: 0.001 to 0.1 (log)" in outcome.err
    assert not (project / "models" / "sweeps").exists()
