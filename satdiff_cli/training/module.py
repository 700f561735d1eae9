"""The Lightning module: one training step, validation at every threshold, averaged weights, what is frozen."""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import lightning
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from satdiff_cli.config import TrainConfig
from satdiff_cli.losses import Tversky, build_class_loss, build_loss, measure_heights
from satdiff_cli.metrics import ClassConfusion, ThresholdCurve
from satdiff_cli.samples import DATES
from satdiff_cli.training.optimisation import make_optimizer, make_schedule

SCORES = ("iou", "f1", "precision", "recall")
_EPOCH_SEEDS = 1_000_003  # a prime far above any number of processes
_PREVIEWED = 4


@dataclass(frozen=True)
class Target:
    """Say what a network is trained to tell.

    Attributes:
        pos_weight: Weight of changed pixels in pixel-wise losses.
        class_names: Classes of land cover; none for change.
        class_weights: Weight of each in pixel-wise losses, or a single one for all.
    """

    pos_weight: float = 1.0
    class_names: Sequence[str] = ()
    class_weights: Sequence[float] = (1.0,)

    def build_loss(self, config: TrainConfig) -> nn.Module:
        """Build the loss that the settings name."""
        tversky = Tversky(config.tversky_alpha, config.tversky_beta, config.tversky_gamma)
        smoothing = config.label_smoothing
        if not self.class_names:
            return build_loss(config.loss, label_smoothing=smoothing, pos_weight=self.pos_weight, tversky=tversky)
        return build_class_loss(
            config.loss, label_smoothing=smoothing, class_weights=self.class_weights, tversky=tversky
        )


class ChangeModule(lightning.LightningModule):
    """Train a network on valid pixels; validate its averaged weights, if there are any, at every threshold.

    Args:
        model: The network.
        config: Settings.
        steps: Steps in an epoch.
        target: What it is trained to tell.
        on_gpu: Whether it will be trained on a GPU.
    """

    def __init__(
        self, model: nn.Module, config: TrainConfig, steps: int, *, target: Target | None = None, on_gpu: bool = False
    ) -> None:
        super().__init__()
        self.model = model.to(memory_format=torch.channels_last)
        if not on_gpu:
            keep_depthwise_in_float32(self.model)
        self.averaged = average_weights(self.model, config.ema) if config.ema else None
        self.config = config
        self.steps = steps
        self.target = target or Target()
        self.loss = self.target.build_loss(config)
        self.curve = ThresholdCurve()
        self.confusion = ClassConfusion.empty(len(self.target.class_names))
        self.losses: list[float] = []
        self.preview: dict[str, Tensor] = {}

    @property
    def network(self) -> nn.Module:
        """The network that is validated and saved: the averaged one where weights are averaged."""
        return self.model if self.averaged is None else self.averaged.module

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        """Return float32 logits of a batch."""
        # Depthwise and small convolutions run up to 2.5 times faster with channels last.
        dates = (batch[date].contiguous(memory_format=torch.channels_last) for date in DATES if date in batch)
        logits: Tensor = (self.model if self.training else self.network)(*dates)
        return logits.float()

    def training_step(self, batch: dict[str, Tensor], _: int) -> Tensor:
        """Return the loss of one batch; with several processes that of all their samples together."""
        if self.config.adversarial == "none":
            loss = self.measure(self(batch), batch)
        else:
            loss, changed = self.attack(batch)
            loss = (loss + self.measure(self(changed), batch)) / 2
        self.losses.append(float(loss.detach()))
        return loss

    def measure(self, outputs: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """Return the loss of a batch's outputs: logits, in training followed by heights where these are learnt."""
        names = [name for name in ("label", "elevation") if name in batch]
        known = {name: batch[name] for name in names}
        if self._trainer is not None and self.trainer.world_size > 1:
            # Losses over a batch, such as Dice, are no mean over its parts.
            outputs = self._gather(outputs)
            known = {name: self._gather(tensor) for name, tensor in known.items()}
        if "elevation" not in known:
            loss: Tensor = self.loss(outputs, known["label"].float())
            return loss
        loss = self.loss(outputs[:, :-1], known["label"].float())
        return loss + self.config.elevation_alpha * measure_heights(outputs[:, -1:], known["elevation"])

    def attack(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Change the images of a batch so that the loss rises: by epsilon along the sign of its gradient.

        Fast gradient sign method, Goodfellow et al. 2015, arXiv:1412.6572. Pixels that are not valid, 0 in every
        channel, stay as they are.

        Returns:
            The loss of the batch as it is, and the changed batch.
        """
        dates = [date for date in DATES if date in batch]
        images = [batch[date].detach().requires_grad_() for date in dates]
        loss = self.measure(self({**batch, **dict(zip(dates, images, strict=True))}), batch)
        gradients = torch.autograd.grad(loss, images, retain_graph=True)
        changed = {
            date: (image + self.config.epsilon * gradient.sign() * (image != 0).any(1, keepdim=True)).detach()
            for date, image, gradient in zip(dates, images, gradients, strict=True)
        }
        return loss, {**batch, **changed}

    def _gather(self, tensor: Tensor) -> Tensor:
        """Join the tensors (n, …) of all processes in their order; gradients find their way back."""
        gathered = self.all_gather(tensor, sync_grads=tensor.requires_grad)
        assert isinstance(gathered, Tensor)
        return gathered.flatten(0, 1)

    def on_before_optimizer_step(self, _: Any) -> None:
        """Leave a frozen encoder as it is: without a gradient the optimiser passes a weight over."""
        if self.is_encoder_frozen:
            for parameter in self.model.encoder.parameters():  # type: ignore[union-attr]
                parameter.grad = None

    def on_train_batch_end(self, *_: Any) -> None:
        """Average the weights."""
        if self.averaged is not None:
            self.averaged.update_parameters(self.model)

    def on_train_epoch_start(self) -> None:
        """Forget the losses of the epoch before; seed dropout, so that any epoch can be trained again exactly."""
        self.losses = []
        torch.manual_seed(self.config.seed + _EPOCH_SEEDS * (self.current_epoch + 1) + self.global_rank)
        self.train()

    @property
    def is_encoder_frozen(self) -> bool:
        """Whether this epoch leaves the encoder as it is."""
        return self.trainer.current_epoch < self.config.freeze_encoder

    def train(self, mode: bool = True) -> Self:
        """Switch to training, but for what is frozen."""
        super().train(mode)
        if mode and self.averaged is not None:
            self.averaged.eval()
        if mode and self.config.freeze_bn != "none":
            frozen = self.model if self.config.freeze_bn == "all" else self.model.encoder
            freeze_batch_norm(frozen)  # type: ignore[arg-type]
        if mode and self._trainer is not None and self.is_encoder_frozen:
            freeze_batch_norm(self.model.encoder)  # type: ignore[arg-type]
        return self

    def on_validation_epoch_start(self) -> None:
        """Start to count anew."""
        self.curve = ThresholdCurve()
        self.confusion = ClassConfusion.empty(len(self.target.class_names))

    def validation_step(self, batch: dict[str, Tensor], index: int) -> None:
        """Count the probabilities of one batch, or its most probable classes, against its labels."""
        logits, label = self(batch), batch["label"].cpu().numpy()
        if self.target.class_names:
            by_date = torch.stack(logits.chunk(label.shape[1], 1), 1)
            found = by_date.argmax(2).to(torch.uint8).cpu().numpy()
            self.confusion += ClassConfusion.count(found, label, len(self.target.class_names))
            probability = torch.softmax(by_date, 2).amax(2)
        else:
            probability = torch.sigmoid(logits)
            self.curve.add(probability.cpu().numpy(), label)
        if index == 0:
            shown = {**batch, "probability": probability}
            self.preview = {name: tensor[:_PREVIEWED].cpu() for name, tensor in shown.items()}

    def on_validation_epoch_end(self) -> None:
        """Count over all processes."""
        self.curve = ThresholdCurve(self._add_up(self.curve.histograms))
        self.confusion = ClassConfusion(self._add_up(self.confusion.counts))

    def _add_up(self, counts: NDArray[np.int64]) -> NDArray[np.int64]:
        """Add the counts of all processes."""
        tensor = torch.from_numpy(counts).to(self.device)
        return self.trainer.strategy.reduce(tensor, reduce_op="sum").cpu().numpy()

    def scores(self) -> dict[str, float]:
        """Return the validation scores, with their threshold or those of each class."""
        if self.target.class_names:
            return score_classes(self.confusion, self.target.class_names)
        return score_curve(self.curve, self.config.threshold)

    def configure_optimizers(self) -> Any:
        """Return the optimiser and the schedule."""
        optimizer = make_optimizer(self.model.parameters(), self.config)
        # Counted in steps: an epoch-wise scheduler is stepped after last.ckpt is written and would lag on resume.
        schedule = make_schedule(optimizer, self.config, self.steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def score_curve(curve: ThresholdCurve, threshold: float) -> dict[str, float]:
    """Return scores with their threshold, the best one where it is given as 0.

    A score without meaning is 0; all are NaN where nothing was counted.
    """
    if not curve.histograms.any():
        return dict.fromkeys((*SCORES, "threshold"), math.nan)
    threshold = threshold or curve.best_threshold()
    confusion = curve.confusion_at(threshold).as_dict()
    scores = {name: 0.0 if math.isnan(confusion[name]) else confusion[name] for name in SCORES}
    return scores | {"threshold": threshold}


def score_classes(confusion: ClassConfusion, names: Sequence[str]) -> dict[str, float]:
    """Return mean IoU, weighted F1, precision and recall, and F1 of each class; all are NaN where nothing was counted.

    There is no threshold.
    """
    summary = confusion.summarize()
    own = confusion.f1 if confusion.counts.any() else np.full(len(names), math.nan)
    by_class = {f"f1_{name}": float(score) for name, score in zip(names, own, strict=True)}
    return {**{name: summary[name] for name in SCORES}, "threshold": math.nan, **by_class}


def average_weights(model: nn.Module, decay: float) -> AveragedModel:
    """Make a running mean of a network's weights and batch statistics.

    The decay rises to its value as (1 + n) / (10 + n) over the first steps, so that the random start is soon forgotten.
    """

    # All tensors of a kind at once: to ask a GPU for the count once a tensor would keep it waiting.
    def average(means: Any, latest: Any, count: Tensor | int) -> None:
        now = min(decay, (1 + int(count)) / (10 + int(count)))
        if means[0].is_floating_point():
            get_ema_multi_avg_fn(now)(means, latest, count)  # type: ignore[no-untyped-call]
        else:  # the number of batches seen
            for mean, value in zip(means, latest, strict=True):
                mean.copy_(value)

    averaged = AveragedModel(model, multi_avg_fn=average, use_buffers=True)
    averaged.requires_grad_(False).eval()  # not what several processes agree on gradients for
    return averaged


def keep_depthwise_in_float32(network: nn.Module) -> None:
    """Let depthwise convolutions compute in float32 under autocast; the network is changed in place.

    On a CPU their backward pass in bfloat16 falls to a reference implementation, which takes longer than all else.
    """
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d) and layer.groups == layer.in_channels > 1:
            layer.forward = functools.partial(_run_in_float32, layer)  # type: ignore[method-assign]


def _run_in_float32(layer: nn.Conv2d, image: Tensor) -> Tensor:
    with torch.autocast(image.device.type, enabled=False):
        return type(layer).forward(layer, image.float())


def freeze_batch_norm(network: nn.Module) -> None:
    """Let the batch norms of a network use the statistics they have, and keep them."""
    for layer in network.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.eval()
