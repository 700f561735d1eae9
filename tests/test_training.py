"""What a training optimises, averages, freezes, validates, keeps, logs and says about memory."""

import copy
import importlib.util
import itertools
import json
import math
import statistics
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pytest
import torch
from command_line import satdiff, snapshot, succeed
from conftest import LABELLED, NETWORK, RUN, pair_id
from numpy.typing import NDArray
from safetensors.torch import load_file
from test_commands import read_csv, read_frames, read_history, read_maps
from test_models import make_card, make_dates
from torch import Tensor, nn

from satdiff_cli import checkpoint, experiment, training
from satdiff_cli.config import TrainConfig
from satdiff_cli.errors import ConfigError
from satdiff_cli.experiment import Job, Machine, Planner
from satdiff_cli.pairing import read_pairs
from satdiff_cli.plugins import list_plugins
from satdiff_cli.tiling import read_tiles
from satdiff_cli.training import memory
from satdiff_cli.training.module import ChangeModule, Target, average_weights, keep_depthwise_in_float32
from satdiff_cli.training.optimisation import make_optimizer, make_schedule

RUNS = "models/saved"
ON_CPU = Machine(device="cpu")
SMALL = ("train", "--arch", "fcsiam", "--crop", 48, "--batch-size", 2, "--steps", 2, "--device", "cpu")


def plan(root: Path, folder: Path = Path("none"), *, machine: Machine = ON_CPU, **settings: Any) -> Job:
    """Plan a training on the tiny project."""
    planner = Planner(read_tiles(root / "data"), read_pairs(root / "data"), machine)
    config = experiment.resolve_config("", None, {"arch": "fcsiam", "crop": 48, "batch_size": 2, **settings})
    return planner.plan(config, planner.split(config.fold), folder, resume=False)


def train(root: Path, *args: object, name: str = "x") -> Path:
    """Train on the tiny project and return the run's folder."""
    succeed(*SMALL, *args, "--name", name, cwd=root)
    return root / RUNS / name


def read_card(folder: Path) -> dict[str, Any]:
    card: dict[str, Any] = json.loads((folder / "model.json").read_text())
    return card


def read_weights(folder: Path) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = load_file(folder / "weights.safetensors")
    return weights


# --- what is kept ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("more", "threshold"), [((), 0.5), (("--threshold", 0.3), 0.3)])
def test_without_validation_the_last_epoch_is_kept(project: Path, more: tuple[object, ...], threshold: float) -> None:
    folder = train(project, "--fold", "none", "--epochs", 3, "--patience", 1, *more)
    card, history = read_card(folder), read_csv(folder / "history.csv")
    assert (card["epoch"], card["threshold"], card["scores"]) == (3, threshold, {})
    assert (card["validation_sites"], len(card["train_sites"])) == ([], LABELLED)
    assert len(history) == 3
    for row in history:
        assert [row[name] for name in ("iou", "f1", "precision", "recall", "threshold")] == [""] * 5
        assert math.isfinite(float(row["loss"]))
    last = torch.load(folder / "last.ckpt", weights_only=True)["state_dict"]
    for name, value in read_weights(folder).items():
        assert torch.equal(value, last[f"model.{name}"]), name


def test_the_last_epoch_is_kept_on_request_whatever_its_score(project: Path) -> None:
    # Steps this large make a network worse and worse.
    for keep in ("best", "last"):
        worse = ("--lr", 0.3, "--optimizer", "sgd", "--clip", 0, "--epochs", 4, "--patience", 9, "--seed", 2)
        folder = train(project, *worse, "--keep", keep, name=keep)
        history, card = read_csv(folder / "history.csv"), read_card(folder)
        scores = [float(row["iou"]) for row in history]
        assert scores[-1] < max(scores), "else the test shows nothing"
        kept = scores.index(max(scores)) if keep == "best" else len(scores) - 1
        assert card["epoch"] == kept + 1
        assert card["scores"]["iou"] == pytest.approx(scores[kept], rel=1e-4)
        assert card["threshold"] == pytest.approx(float(history[kept]["threshold"]))


@pytest.mark.parametrize("more", [(), ("--threshold", 0.5), ("--ema", 0.9)])
def test_the_weights_that_are_saved_have_the_scores_that_are_reported(project: Path, more: tuple[object, ...]) -> None:
    folder = train(project, "--epochs", 3, "--precision", "fp32", "--keep", "last", *more)
    card = read_card(folder)
    if "--threshold" in more:
        assert card["threshold"] == 0.5
        assert {row["threshold"] for row in read_csv(folder / "history.csv")} == {"0.5"}
    model, _ = checkpoint.load_model(folder)
    _, tiles = training.make_loaders(plan(project))
    hits = alarms = misses = 0
    with torch.inference_mode():
        for batch in tiles:
            counted = batch["label"] != 255
            found = (torch.sigmoid(model(batch["before"], batch["after"])) >= card["threshold"])[counted]
            changed = batch["label"][counted] == 1
            hits += int((found & changed).sum())
            alarms += int((found & ~changed).sum())
            misses += int((~found & changed).sum())
    assert hits > 0
    expected = {"iou": hits / (hits + alarms + misses), "precision": hits / (hits + alarms)}
    expected |= {"recall": hits / (hits + misses), "f1": 2 * hits / (2 * hits + alarms + misses)}
    assert card["scores"] == pytest.approx(expected, rel=2e-3)
    assert float(read_csv(folder / "history.csv")[-1]["iou"]) == pytest.approx(expected["iou"], rel=2e-3)


# --- averaged weights ------------------------------------------------------------------------------------------------


def test_averaged_weights_are_those_of_a_hand_rolled_loop() -> None:
    torch.manual_seed(0)
    convolution, norm = nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3)
    model = nn.Sequential(convolution, norm)
    averaged = average_weights(model, 0.4)
    means: dict[str, Tensor] = {}
    for count in range(12):  # the decay rises from 2 / 11 to 0.4, which it reaches at the sixth step
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
            model(torch.randn(4, 2, 9, 7) + count)
        averaged.update_parameters(model)
        decay = min(0.4, (1 + count) / (10 + count))
        found = averaged.module.state_dict()
        for name, value in model.state_dict().items():
            if name.endswith("num_batches_tracked"):
                assert found[name] == count + 1
                continue
            means[name] = decay * means[name] + (1 - decay) * value if count else value.clone()
            torch.testing.assert_close(found[name], means[name])
    assert means.keys() >= {"0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var"}


def test_averaged_weights_are_what_is_saved(project: Path) -> None:
    folder = train(project, "--ema", 0.9, "--epochs", 2)
    state, saved = torch.load(folder / "last.ckpt", weights_only=True)["state_dict"], read_weights(folder)
    if read_card(folder)["epoch"] == 2:
        for name, value in saved.items():
            assert torch.equal(value, state[f"averaged.module.{name}"]), name
    assert int(state["averaged.n_averaged"]) == 4, "once a step"
    assert not torch.equal(state["model.head.weight"], state["averaged.module.head.weight"])
    assert saved.keys() == checkpoint.load_model(folder)[0].state_dict().keys()


# --- frozen parts ----------------------------------------------------------------------------------------------------


def start_of(root: Path, *, seed: int = 0, **settings: Any) -> nn.Module:
    """Build the network that a training starts from."""
    lightning.seed_everything(seed, verbose=False)
    return checkpoint.build_model(plan(root, **settings).card)


SIAMESE = (*NETWORK, "--arch", "siamese", "--keep", "last", "--schedule", "exponential")


def test_a_frozen_encoder_stays_as_it_is_bit_by_bit_and_then_learns(project: Path) -> None:
    states = [start_of(project, arch="siamese", encoder=NETWORK[1]).state_dict()]
    for epochs in (1, 2, 3):
        more = ("--resume",) if epochs > 1 else ()
        states.append(read_weights(train(project, *SIAMESE, "--freeze-encoder", 2, "--epochs", epochs, *more)))
    encoder = [name for name in states[0] if name.startswith("encoder.")]
    assert {name.rsplit(".", 1)[-1] for name in encoder} >= {"weight", "bias", "running_mean", "running_var"}
    for name in encoder:
        assert torch.equal(states[0][name], states[1][name]), name
        assert torch.equal(states[0][name], states[2][name]), name
    learned = {name for name in encoder if not torch.equal(states[2][name], states[3][name])}
    assert {name.rsplit(".", 1)[-1] for name in learned} >= {"weight", "bias", "running_mean", "running_var"}
    for before, after in itertools.pairwise(states):
        assert not torch.equal(before["head.0.weight"], after["head.0.weight"])


@pytest.mark.parametrize("frozen", ["none", "encoder", "all"])
def test_frozen_batch_norms_keep_their_statistics(project: Path, frozen: str) -> None:
    before = start_of(project, arch="siamese", encoder=NETWORK[1]).state_dict()
    after = read_weights(train(project, *SIAMESE, "--freeze-bn", frozen, "--epochs", 2))
    statistics_of = [name for name in before if name.endswith(("running_mean", "running_var", "num_batches_tracked"))]
    for name in statistics_of:
        is_frozen = frozen == "all" or (frozen == "encoder" and name.startswith("encoder."))
        assert torch.equal(before[name], after[name]) == is_frozen, name
    assert any(name.startswith("encoder.") for name in statistics_of)
    scales = [name.replace("running_mean", "weight") for name in statistics_of if name.endswith("running_mean")]
    assert any(not torch.equal(before[name], after[name]) for name in scales), "their weights are learned"


@pytest.mark.parametrize("more", [("--freeze-encoder", 1), ("--freeze-bn", "encoder"), ("--encoder-weights", "w.pth")])
def test_what_has_no_encoder_cannot_freeze_it(project_root: Path, more: tuple[object, ...], tmp_path: Path) -> None:
    outcome = satdiff(*SMALL, *more, "--name", "x", "--out", tmp_path, cwd=project_root)
    assert outcome.code == 1
    assert "fcsiam has no encoder" in outcome.err
    assert not list(tmp_path.iterdir())


# --- optimisers, schedules, losses -----------------------------------------------------------------------------------


def list_rates(config: TrainConfig, steps: int) -> tuple[list[float], torch.optim.Optimizer]:
    """List the learning rate of each step, and of the one after the last."""
    optimizer = make_optimizer([nn.Parameter(torch.zeros(1))], config)
    schedule, rates = make_schedule(optimizer, config, steps), []
    for _ in range(steps * config.epochs):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return [*rates, optimizer.param_groups[0]["lr"]], optimizer


def test_the_exponential_schedule_lowers_the_rate_after_every_epoch() -> None:
    rates, _ = list_rates(TrainConfig(lr=0.01, lr_decay=0.5, epochs=4), 3)
    assert rates == pytest.approx([0.01] * 3 + [0.005] * 3 + [0.0025] * 3 + [0.00125] * 3 + [0.000625])


@pytest.mark.parametrize(
    ("warmup", "steps", "peak"),
    [(0.25, 5, 5), (0.1, 5, 2), (0.0, 5, 1), (0.05, 5, 1), (0.3, 1, 1), (1.0, 5, 20), (0.5, 1, 2)],
)
def test_one_cycle_starts_low_peaks_after_the_warm_up_and_ends_near_zero(warmup: float, steps: int, peak: int) -> None:
    rates, _ = list_rates(TrainConfig(lr=0.01, schedule="onecycle", warmup=warmup, epochs=4), steps)
    assert rates[0] == pytest.approx(0.01 / 25)
    assert rates.index(max(rates)) == peak
    assert rates[peak] == pytest.approx(0.01)
    assert rates == [*sorted(rates[:peak]), *sorted(rates[peak:], reverse=True)]
    if peak < len(rates) - 1:
        assert rates[-1] == pytest.approx(0.01 / 25 / 1e4)


@pytest.mark.parametrize(("warmup", "peak"), [(0.25, 5), (0.0, 0), (0.1, 2), (1.0, 20)])
def test_the_cosine_starts_low_peaks_after_the_warm_up_and_ends_at_zero(warmup: float, peak: int) -> None:
    rates, _ = list_rates(TrainConfig(lr=0.01, schedule="cosine", warmup=warmup, epochs=4), 5)
    assert rates[0] == pytest.approx(0.0001 if peak else 0.01)
    assert rates[peak] == pytest.approx(0.01)
    rising = [0.01 * (0.01 + 0.99 * step / peak) for step in range(peak)]
    falling = (
        [0.01 * (1 + math.cos(math.pi * step / (20 - peak))) / 2 for step in range(21 - peak)] if peak < 20 else []
    )
    assert rates[: len(rising) + len(falling)] == pytest.approx([*rising, *falling], abs=1e-9)


def test_optimisers_are_those_that_are_named() -> None:
    config = {"lr": 0.5, "weight_decay": 0.25}
    weight = nn.Parameter(torch.ones(1))
    adam, adamw, sgd = (
        make_optimizer([weight], TrainConfig(optimizer=name, **config))  # type: ignore[arg-type]
        for name in ("adam", "adamw", "sgd")
    )
    assert [type(optimizer).__name__ for optimizer in (adam, adamw, sgd)] == ["Adam", "AdamW", "SGD"]
    for optimizer in (adam, adamw, sgd):
        assert (optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["weight_decay"]) == (0.5, 0.25)
    assert adam.param_groups[0]["betas"] == adamw.param_groups[0]["betas"] == (0.9, 0.999)
    assert (sgd.param_groups[0]["momentum"], sgd.param_groups[0]["nesterov"]) == (0.9, True)
    # Decoupled: without a gradient to speak of the weight shrinks by lr * weight_decay, and not by Adam's full step.
    weight.grad = torch.zeros(1)
    adamw.step()
    assert weight.item() == pytest.approx(1 - 0.5 * 0.25)
    adam.step()
    assert weight.item() == pytest.approx(1 - 0.5 * 0.25 - 0.5, rel=1e-5)


def test_one_cycle_moves_the_momentum_against_the_rate() -> None:
    momenta = []
    config = TrainConfig(optimizer="sgd", schedule="onecycle", warmup=0.5, epochs=1)
    optimizer = make_optimizer([nn.Parameter(torch.zeros(1))], config)
    schedule = make_schedule(optimizer, config, 4)
    for _ in range(4):
        momenta.append(optimizer.param_groups[0]["momentum"])
        optimizer.step()
        schedule.step()
    assert (momenta[0], momenta[2]) == pytest.approx((0.95, 0.85))


@pytest.mark.parametrize("schedule", ["exponential", "onecycle", "cosine"])
def test_the_history_has_the_rate_that_each_epoch_began_with(project: Path, schedule: str) -> None:
    settings = {"schedule": schedule, "lr": 0.004, "lr_decay": 0.5, "warmup": 0.5, "epochs": 3, "optimizer": "sgd"}
    folder = train(
        project, *(text for name, value in settings.items() for text in (f"--{name.replace('_', '-')}", value))
    )
    rates, _ = list_rates(TrainConfig(**settings), 2)  # type: ignore[arg-type]
    found = [float(row["lr"]) for row in read_csv(folder / "history.csv")]
    assert found == pytest.approx([rates[0], rates[2], rates[4]], rel=1e-4)


def test_the_weight_of_change_is_the_ratio_of_unchanged_to_changed_pixels(project: Path) -> None:
    rows = read_csv(project / "data" / "tiles.csv")
    folds = {row["pair_id"]: row["fold"] for row in read_csv(project / "data" / "pairs.csv")}
    changed = total = 0.0
    for row in (row for row in rows if folds[row["pair_id"]] in {"1", "2", "3", "4"}):
        area = int(row["height"]) * int(row["width"]) * float(row["valid_fraction"])
        changed, total = changed + area * float(row["change_fraction"]), total + area
    ratio = (total - changed) / changed
    assert ratio > 2
    assert plan(project, pos_weight="auto").pos_weight == pytest.approx(ratio)
    assert plan(project, pos_weight="2.5").pos_weight == 2.5
    histories = [
        read_history(train(project, "--loss", "bce", "--epochs", 1, "--pos-weight", weight, name=f"w{number}"))
        for number, weight in enumerate(["auto", repr(plan(project, pos_weight="auto").pos_weight), "1"])
    ]
    assert histories[0] == histories[1]
    assert float(histories[0][0]["loss"]) > 1.2 * float(histories[2][0]["loss"])


def test_a_weight_of_change_without_change_is_refused(project: Path) -> None:
    path = project / "data" / "tiles.csv"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], *(f"{line.rsplit(',', 1)[0]},0" for line in lines[1:])]) + "\n")
    outcome = satdiff(*SMALL, "--pos-weight", "auto", "--name", "x", cwd=project)
    assert (outcome.code, "finds no change" in outcome.err, "--pos-weight 1" in outcome.err) == (1, True, True)


def test_the_module_smooths_labels_and_weighs_change_as_the_settings_say() -> None:
    config = TrainConfig(loss="bce", label_smoothing=0.2)
    module = ChangeModule(nn.Conv2d(1, 1, 1), config, 1, target=Target(pos_weight=3.0))
    logits, label = torch.tensor([[[[0.5, -1.0, 2.0]]]]), torch.tensor([[[[1.0, 0.0, 255.0]]]])
    changed, unchanged, _ = torch.sigmoid(logits).flatten().tolist()
    # Half of the smoothing goes to either class, so the targets are 0.9 and 0.1; what changed counts three times.
    costs = [3 * cross_entropy(changed, 0.9), cross_entropy(unchanged, 0.1)]
    assert float(module.loss(logits, label)) == pytest.approx(sum(costs) / 2, rel=1e-5)


def cross_entropy(probability: float, target: float) -> float:
    return -target * math.log(probability) - (1 - target) * math.log(1 - probability)


# --- depthwise convolutions ------------------------------------------------------------------------------------------


class Depthwise(nn.Module):
    """A small network with depthwise, grouped and plain convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.plain = nn.Conv2d(3, 8, 3, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.grouped = nn.Conv2d(8, 4, 3, padding=1, groups=4)
        self.head = nn.Conv2d(4, 1, 1)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.grouped(torch.relu(self.depthwise(self.plain(image)))))


def test_depthwise_convolutions_in_float32_change_nothing_outside_of_autocast() -> None:
    plain = Depthwise()
    wrapped = copy.deepcopy(plain)
    keep_depthwise_in_float32(wrapped)
    image = torch.randn(2, 3, 17, 23)
    for network in (plain, wrapped):
        network(image).square().mean().backward()
    assert torch.equal(plain(image), wrapped(image))
    for one, other in zip(plain.parameters(), wrapped.parameters(), strict=True):
        assert one.grad is not None
        assert other.grad is not None
        assert torch.equal(one.grad, other.grad)
    assert list(plain.state_dict()) == list(wrapped.state_dict())
    wrapped.load_state_dict(plain.state_dict())


def test_depthwise_convolutions_compute_in_float32_under_autocast_and_others_do_not() -> None:
    network = Depthwise()
    keep_depthwise_in_float32(network)
    kinds: dict[str, torch.dtype] = {}
    for name, layer in network.named_children():
        layer.register_forward_hook(lambda _, __, out, name=name: kinds.update({name: out.dtype}))
    with torch.autocast("cpu", torch.bfloat16):
        network(torch.randn(1, 3, 8, 8)).float().mean().backward()
    assert kinds == {
        "plain": torch.bfloat16,
        "depthwise": torch.float32,
        "grouped": torch.bfloat16,
        "head": torch.bfloat16,
    }
    assert network.depthwise.weight.grad is not None
    assert torch.isfinite(network.depthwise.weight.grad).all()


def test_a_copy_of_a_wrapped_network_has_its_own_weights() -> None:
    network = Depthwise()
    keep_depthwise_in_float32(network)
    image = torch.randn(1, 3, 8, 8)
    before = network(image)
    other = copy.deepcopy(network)
    for parameter in other.parameters():
        nn.init.zeros_(parameter)
    assert not other(image).any()
    assert not other.depthwise(torch.randn(1, 8, 8, 8)).any()
    assert torch.equal(network(image), before)


# --- loggers ---------------------------------------------------------------------------------------------------------


def test_tensorboard_gets_every_score_of_every_epoch_and_a_picture(project: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

    folder = train(project, "--logger", "tensorboard", "--epochs", 2)
    place = folder.parent / "tensorboard" / "x"
    events = EventAccumulator(str(place))
    events.Reload()
    tags = events.Tags()
    history = read_csv(folder / "history.csv")
    for name in set(history[0]) - {"epoch"}:
        assert name in tags["scalars"]
        found = {event.step: event.value for event in events.Scalars(name)}
        expected = {int(row["epoch"]): float(row[name]) for row in history}
        assert found == pytest.approx(expected, rel=1e-4), name
    (picture,) = tags["images"]
    assert [event.step for event in events.Images(picture)] == [1, 2]
    image = events.Images(picture)[0]
    assert (image.width, image.height % 128) == (4 * 128, 0)
    assert [run.name for run in checkpoint.list_runs(folder.parent)] == ["x", RUN]
    assert "run x" in succeed("info", folder, cwd=project).out
    succeed("predict", "--device", "cpu", cwd=project)


@pytest.mark.parametrize("kind", ["wandb", "mlflow"])
def test_a_logger_that_is_not_installed_is_refused_before_anything_is_written(project: Path, kind: str) -> None:
    if importlib.util.find_spec(kind):
        pytest.skip(f"{kind} is installed")
    before = snapshot(project)
    outcome = satdiff(*SMALL, "--name", "x", "--logger", kind, cwd=project)
    assert outcome.code == 1
    assert f"--logger {kind} needs a package" in outcome.err
    assert f"pip install 'satdiff[{kind}]'" in outcome.err
    assert snapshot(project) == before


def test_an_unknown_logger_is_refused_with_those_there_are(project_root: Path) -> None:
    outcome = satdiff(*SMALL, "--name", "x", "--logger", "tensorbord", cwd=project_root)
    assert outcome.code == 1
    assert "expected one of tensorboard, wandb, mlflow" in outcome.err
    assert "did you mean tensorboard?" in outcome.err


# --- memory ----------------------------------------------------------------------------------------------------------


def estimate(
    arch: str = "fcsiam", *, crop: int = 64, batch_size: int = 2, optimizer: str = "adam"
) -> memory.MemoryEstimate:
    def build() -> nn.Module:
        return checkpoint.build_model(make_card(arch))

    return memory.estimate_memory(build, channels=3, crop=crop, batch_size=batch_size, optimizer=optimizer)


@pytest.mark.parametrize("arch", ["fcsiam", "siamese", "unetplusplus"])
def test_estimated_memory_is_what_a_step_keeps(arch: str) -> None:
    model = checkpoint.build_model(make_card(arch)).train()
    found = estimate(arch, batch_size=3)
    assert found.parameters == sum(weight.numel() for weight in model.parameters())
    assert found.weights == 4 * 4 * found.parameters
    assert estimate(arch, optimizer="sgd").weights == 3 * 4 * found.parameters
    assert found.total == found.weights + found.activations
    own = {weight.data_ptr() for weight in model.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logits = model(*make_dates(3, 64, 64, count=3))
    assert logits.requires_grad
    real = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    assert found.activations == pytest.approx(real, rel=0.05)


def test_activations_grow_with_the_batch_and_with_the_square_of_the_crop() -> None:
    base = estimate(crop=64, batch_size=2).activations
    assert estimate(crop=64, batch_size=10).activations == 5 * base
    assert estimate(crop=128, batch_size=2).activations == pytest.approx(4 * base, rel=0.01)
    assert estimate(crop=256, batch_size=2).activations == pytest.approx(16 * base, rel=0.01)


def test_an_estimate_takes_no_memory() -> None:
    # One image of this size takes more than this machine has.
    assert estimate(crop=2**17).activations > 1e13


def fit_up_to(most: int, tried: list[int]) -> Callable[[int], None]:
    def run(size: int) -> None:
        tried.append(size)
        if size > most:
            raise torch.OutOfMemoryError("out of memory")

    return run


@pytest.mark.parametrize(
    ("most", "sizes"), [(13, [20, 10]), (20, [20]), (1, [20, 10, 5, 2, 1]), (0, [20, 10, 5, 2, 1])]
)
def test_a_batch_is_halved_until_it_fits(most: int, sizes: list[int]) -> None:
    tried: list[int] = []
    assert memory.find_batch_size(fit_up_to(most, tried), 40) == (sizes[-1] if most else None)
    assert tried == sizes
    assert memory.find_batch_size(fit_up_to(0, []), 1) is None


class Hungry(nn.Module):
    """Run out of memory with more than so many samples, and remember what was held then."""

    def __init__(self, most: int, held: list[Any]) -> None:
        super().__init__()
        self.layer = nn.Conv2d(4, 1, 1)
        self.most, self.held = most, held

    def forward(self, before: Tensor, _: Tensor) -> Tensor:
        features = self.layer(before)
        if len(before) > self.most:
            self.held += [weakref.ref(self), weakref.ref(features)]
            raise torch.OutOfMemoryError("CUDA out of memory")
        return features


@pytest.mark.parametrize(
    ("most", "naming"), [(3, "--batch-size 2"), (0, "nor does a single crop"), (4, "--batch-size 4")]
)
def test_running_out_of_memory_names_a_batch_that_fits(
    project: Path, monkeypatch: pytest.MonkeyPatch, most: int, naming: str
) -> None:
    held: list[Any] = []
    alive: list[bool] = []

    def build(_: checkpoint.ModelCard) -> nn.Module:
        alive.append(any(reference() is not None for reference in held))
        return Hungry(most, held)

    monkeypatch.setattr(checkpoint, "build_model", build)
    before = snapshot(project)
    outcome = satdiff(*SMALL, "--batch-size", 8, "--name", "x", "--crop", 64, cwd=project)
    assert outcome.code == 1
    assert "a batch of 8 crops of 64 px does not fit" in outcome.err
    assert naming in outcome.err
    assert "hint   " in outcome.err
    assert snapshot(project) == before
    assert alive == [False, False], "what did not fit is gone when smaller batches are tried"


@pytest.mark.parametrize("arch", sorted(set(list_plugins("models")) - {"unet"}))  # which takes one date
def test_a_dry_run_says_settings_weights_memory_and_steps_and_writes_nothing(project_root: Path, arch: str) -> None:
    before = {path: path.stat().st_mtime_ns for path in project_root.rglob("*")}
    more: tuple[object, ...] = NETWORK if arch in {"siamese", "unetplusplus"} else ("--encoder-weights", "none")
    args = (*SMALL, "--arch", arch, *more, "--epochs", 7, "--lr", 0.0123, "--name", "x", "--dry-run")
    outcome = succeed(*args, cwd=project_root)
    for line in (f"  arch = {arch}", "  lr = 0.0123", "  batch_size = 2", "  augment = standard"):
        assert line in outcome.err.splitlines()
    settings: dict[str, Any] = {"arch": arch} | ({"encoder": NETWORK[1]} if NETWORK[0] in more else {})
    job = plan(project_root, **settings)
    count = sum(weight.numel() for weight in checkpoint.build_model(job.card).parameters())
    assert f"  {count / 1e6:.2f} M parameters; 2 steps an epoch, 14 in all" in outcome.err
    assert "memory a device in float32" in outcome.err
    assert outcome.out == ""
    assert {path: path.stat().st_mtime_ns for path in project_root.rglob("*")} == before


def test_without_steps_an_epoch_sees_the_area_of_all_training_tiles_once(project_root: Path) -> None:
    job = plan(project_root, crop=32)
    area = sum(tile.window.height * tile.window.width for tile in job.split.train_tiles)
    assert job.steps == round(area / 32**2 / 2) > 10
    assert plan(project_root, crop=32, steps=3).steps == 3
    assert plan(project_root, crop=2048).steps == 1


# --- all folds -------------------------------------------------------------------------------------------------------

CV = (*SMALL, "--epochs", 2, "--folds", "all", "--name", "cv")


@pytest.fixture(scope="module")
def cross_validated(project_root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The tiny project trained on all folds, and what was printed."""
    import shutil

    root = Path(shutil.copytree(project_root, tmp_path_factory.mktemp("folds") / "project"))
    return root, succeed(*CV, cwd=root).out


def test_all_folds_print_their_scores_with_mean_and_spread(cross_validated: tuple[Path, str]) -> None:
    root, out = cross_validated
    cards = [read_card(root / RUNS / f"cv_fold{fold}") for fold in range(LABELLED)]
    lines = [line.split() for line in out.replace("│", " ").splitlines()]
    rows = {line[0]: line[1:] for line in lines if line}
    names = ("iou", "f1", "precision", "recall")
    for fold, card in enumerate(cards):
        scores = [f"{card['scores'][name]:.3f}" for name in names]
        assert rows[str(fold)] == [str(card["epoch"]), *scores, f"{card['threshold']:.3f}"]
    columns = [[card["scores"][name] for card in cards] for name in names]
    columns.append([card["threshold"] for card in cards])
    assert rows["mean"] == [f"{statistics.mean(column):.3f}" for column in columns]
    assert rows["spread"][-5:] == [f"{statistics.stdev(column):.3f}" for column in columns]
    assert out.strip().splitlines()[-1] == "data/predicted_masks/oof_cv.pkl"


def read_oof(root: Path) -> dict[str, NDArray[np.float16]]:
    return read_maps(root / "data" / "predicted_masks" / "oof_cv.pkl")


def test_every_labelled_pair_is_predicted_by_the_run_that_has_not_seen_its_site(
    cross_validated: tuple[Path, str], tmp_path: Path
) -> None:
    root, _ = cross_validated
    maps = read_oof(root)
    assert sorted(maps) == sorted(pair_id(number) for number in range(LABELLED))
    rows = {row["pair_id"]: row for row in read_csv(root / "data" / "pairs.csv")}
    for fold in range(LABELLED):
        card = read_card(root / RUNS / f"cv_fold{fold}")
        succeed(
            "predict", f"cv_fold{fold}", "--scenes", "labelled", "--out", tmp_path / "p", "--device", "cpu", cwd=root
        )
        seen = read_maps(tmp_path / "p.pkl")
        for name, found in maps.items():
            is_own = rows[name]["fold"] == str(fold)
            assert np.array_equal(found, seen[name], equal_nan=True) == is_own, (name, fold)
            assert (rows[name]["site_id"] in card["train_sites"]) != is_own
            assert (rows[name]["site_id"] in card["validation_sites"]) == is_own
        for path in (tmp_path / "p.pkl", *(tmp_path / "p").iterdir()):
            path.unlink()
        (tmp_path / "p").rmdir()
    header = read_frames(root / "data" / "predicted_masks" / "oof_cv.pkl")[0]
    thresholds = [read_card(root / RUNS / f"cv_fold{fold}")["threshold"] for fold in range(LABELLED)]
    assert header["threshold"] == pytest.approx(statistics.mean(thresholds))
    succeed("evaluate", "data/predicted_masks/oof_cv.pkl", cwd=root)


def test_a_fold_of_all_is_trained_like_a_single_one(cross_validated: tuple[Path, str]) -> None:
    root, _ = cross_validated
    alone = train(root, "--epochs", 2, "--fold", 3, name="alone")
    assert read_history(alone) == read_history(root / RUNS / "cv_fold3")
    for name, value in read_weights(alone).items():
        assert torch.equal(value, read_weights(root / RUNS / "cv_fold3")[name])


def test_all_folds_refuse_what_they_cannot_do(project_root: Path) -> None:
    for args, naming, hinting in (
        (("--folds", "0,1"), "'0,1'", "--fold K"),
        (("--folds", "all", "--devices", 2), "one device", "--fold K"),
    ):
        outcome = satdiff(*SMALL, *args, cwd=project_root)
        assert (outcome.code, naming in outcome.err, hinting in outcome.err) == (1, True, True)


def test_all_folds_do_not_replace_runs_or_predictions_unless_asked(cross_validated: tuple[Path, str]) -> None:
    root, _ = cross_validated
    before = snapshot(root)
    for name in ("cv", "other"):
        if name == "other":
            (root / "data" / "predicted_masks" / "oof_other").mkdir()
        outcome = satdiff(*CV[:-1], name, cwd=root)
        assert (outcome.code, "--overwrite" in outcome.err) == (1, True)
    (root / "data" / "predicted_masks" / "oof_other").rmdir()
    assert snapshot(root) == before


def test_settings_that_do_not_fit_are_refused_in_the_dry_run_too(project_root: Path) -> None:
    with pytest.raises(ConfigError, match="2 devices cannot share batches of 3 evenly"):
        plan(project_root, machine=Machine(devices=2), batch_size=3)
    outcome = satdiff(*SMALL, "--batch-size", 3, "--devices", 2, "--name", "x", "--dry-run", cwd=project_root)
    assert (outcome.code, "--batch-size 4" in outcome.err) == (1, True)


def test_a_training_started_from_python_says_what_came_of_it(project: Path) -> None:
    job = plan(project, project / RUNS / "own", steps=2, epochs=1)
    steps: list[tuple[int, int]] = []
    summary = training.fit(job, lambda progress: steps.append((progress.epoch, progress.step)))
    assert summary is not None
    assert (summary.folder, summary.epochs, summary.stopped_early) == (job.folder, 1, False)
    assert steps == [(1, 1), (1, 2)]
    assert summary.card == checkpoint.read_card(job.folder)
