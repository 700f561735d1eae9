"""Detection without labels: a statistics pass over a sample of a composite, then a score pass over all of it."""

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from satdiff_cli.config import Relative, ThresholdKind
from satdiff_cli.detection.choosing import AUTO, choose_method, list_methods, plugin_name
from satdiff_cli.detection.evidence import Evidence, measure_evidence
from satdiff_cli.detection.patches import ChangeModel, Sample
from satdiff_cli.detection.sampling import Part, read_rows, read_sample, split_part
from satdiff_cli.detection.thresholds import (
    ScoreCurve,
    find_floor,
    find_threshold,
    fit_mixture,
    make_curve,
    refine_mixture,
)
from satdiff_cli.errors import ConfigError, RasterError, require_known
from satdiff_cli.plugins import load_plugin
from satdiff_cli.radiometry import RelativeNormalization, fit_relative
from satdiff_cli.raster import ONE_PASS_CACHE_BYTES, Composite, ProbabilityWriter, bound_cache

__all__ = ["Detection", "DetectionConfig", "detect", "list_methods"]


@dataclass(frozen=True)
class DetectionConfig:
    """Say how change is found without labels.

    Attributes:
        method: A detector's name, or ``auto`` to choose by the bands.
        normalize: How the light of the dates is made alike.
        threshold: How change is parted from the rest.
        false_alarms: Share of the unchanged pixels that may be called change, in (0, 1); replaces ``threshold``.
        seed: Of what is drawn at random.
    """

    method: str = AUTO
    normalize: Relative = "pif"
    threshold: ThresholdKind = "otsu"
    false_alarms: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        require_known("method", self.method, list_methods())
        require_known("normalization", self.normalize, get_args(Relative))
        require_known("threshold", self.threshold, get_args(ThresholdKind))
        if self.false_alarms is not None and not 0 < self.false_alarms < 1:
            raise ConfigError(
                f"--false-alarms is {self.false_alarms:g}, expected a share between 0 and 1",
                "--false-alarms 0.01 for one unchanged pixel in a hundred",
            )


@dataclass(frozen=True)
class Detection:
    """Report what was found, and how.

    Attributes:
        method: The detector that was used.
        reason: Why that one.
        normalize: How the light of the dates was made alike.
        threshold: Probability from which a pixel counts as changed.
        threshold_by: How it was found: ``otsu``, ``kmeans``, or ``false alarms 0.01``.
        separability: How much of the strongest differences is alike over areas, in [0, 1]; see ``Evidence``.
        is_changed: Whether that is more than noise or a residual shift explains. If not, no pixel counts as changed.
        valid_px: Valid pixels.
        changed_px: Those of them that count as changed.
        seconds: Time that the passes took, ``statistics`` and ``scores`` [s].
    """

    method: str
    reason: str
    normalize: Relative
    threshold: float
    threshold_by: str
    separability: float
    is_changed: bool
    valid_px: int
    changed_px: int
    seconds: dict[str, float]

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)

    @property
    def notes(self) -> list[str]:
        """Say what the user should know."""
        if self.is_changed:
            return []
        return ["no change stands out from noise and what is left of shift and light: the map is empty"]


@dataclass(frozen=True)
class Scorer:
    """Turn the pixels of a composite into probabilities of change.

    Attributes:
        relative: Brings the dates to a common scale.
        model: What the detector learnt from the sample.
        margin_px: How far its scores look [px].
        curve: From scores to probabilities.
    """

    relative: RelativeNormalization
    model: ChangeModel
    margin_px: int
    curve: ScoreCurve

    def score(self, part: Part) -> NDArray[np.float32]:
        """Return probabilities of the pixels without margin, float32 (h, w), NaN where not valid."""
        probability = self.curve.apply(self.model.score(part.normalize(self.relative))[part.inner])
        return np.where(part.valid[part.inner], probability, np.float32(np.nan))

    def score_rows(self, part: Part, pool: ThreadPoolExecutor) -> NDArray[np.float32]:
        """Score rows of a composite in windows next to each other."""
        return np.concatenate(list(pool.map(self.score, split_part(part, self.margin_px))), axis=1)


@dataclass(frozen=True)
class Learnt:
    """Hold what a sample of a composite told.

    Attributes:
        method: The detector.
        reason: Why that one.
        scorer: How to score the composite.
        threshold: Probability from which a pixel counts as changed.
        evidence: Whether there is any change.
    """

    method: str
    reason: str
    scorer: Scorer
    threshold: float
    evidence: Evidence


def detect(
    composite: Path, out: Path, config: DetectionConfig, *, on_rows: Callable[[int], None] = lambda _: None
) -> Detection:
    """Write the probability of change of a composite, found without labels.

    Args:
        composite: A composite of two dates as ``satdiff pair`` makes it.
        out: The probability raster to write, a Cloud Optimized GeoTIFF.
        config: How.
        on_rows: Told how many rows were done since it was last told.

    Raises:
        ConfigError: The method cannot work on these bands.
        RasterError: The composite cannot be read, has not two dates, or no valid pixel.
        WeightsError: The method needs weights that are not installed.
    """
    threads = os.cpu_count() or 1
    started = time.perf_counter()
    with bound_cache(ONE_PASS_CACHE_BYTES), Composite(composite, num_threads=threads) as opened:
        learnt = learn(opened, config)
        between = time.perf_counter()
        valid_px = changed_px = 0
        with ThreadPoolExecutor(threads) as pool, ProbabilityWriter(out, opened.grid) as writer:
            for row, part in read_rows(opened, learnt.scorer.margin_px):
                probability = learnt.scorer.score_rows(part, pool)
                writer.write_rows(row, probability[None])
                valid_px += int(np.count_nonzero(part.valid[part.inner]))
                changed_px += int(np.count_nonzero(probability >= learnt.threshold))
                on_rows(len(probability))
    rate = config.false_alarms
    return Detection(
        learnt.method,
        learnt.reason,
        config.normalize,
        threshold=learnt.threshold,
        threshold_by=config.threshold if rate is None else f"false alarms {rate:g}",
        separability=learnt.evidence.separability,
        is_changed=learnt.evidence.is_changed,
        valid_px=valid_px,
        changed_px=changed_px,
        seconds={"statistics": between - started, "scores": time.perf_counter() - between},
    )


def learn(composite: Composite, config: DetectionConfig) -> Learnt:
    """Learn from a sample how a composite is to be scored.

    Raises:
        RasterError: The composite has not two dates, or no valid pixel.
    """
    if composite.dates != 2:
        raise RasterError(
            f"{composite.path} holds {composite.dates} date, expected 2", "make it with: satdiff pair DATA"
        )
    method, reason = config.method, "as asked for"
    if method == AUTO:
        method, reason = choose_method(len(composite.bands), composite.statistics.count)
    detector = load_plugin("detectors", plugin_name(method))
    parts = read_sample(composite, detector.MARGIN_PX)
    if not any(part.valid.any() for part in parts):
        raise RasterError(f"{composite.path} has no valid pixel", "check nodata values and NaN: gdalinfo -stats FILE")
    counted = np.concatenate([part.counted for part in parts], axis=1)
    is_intensity = len(composite.bands) == 1 and bool(counted.min() >= 0)
    relative = fit_relative(config.normalize, counted, composite.statistics, is_intensity=is_intensity)
    patches = [part.normalize(relative) for part in parts]
    evidence = measure_evidence(patches)
    model: ChangeModel = detector.fit(Sample(patches, composite.bands, config.seed))
    scored = [model.score(patch) for patch in patches]
    scores = np.concatenate([score[patch.scored] for score, patch in zip(scored, patches, strict=True)])
    unchanged = np.concatenate(
        [score[patch.scored & mask] for score, patch, mask in zip(scored, patches, evidence.unchanged, strict=True)]
    )
    floor = find_floor(unchanged, evidence.share)
    parting = max(floor, find_threshold(config.threshold, scores, share=evidence.share))
    curve, threshold = calibrate(scores, parting, config, is_chi_square=detector.IS_CHI_SQUARE)
    if not evidence.is_changed:
        curve, threshold = curve.below_half(), 0.5
    return Learnt(method, reason, Scorer(relative, model, detector.MARGIN_PX, curve), threshold, evidence)


def calibrate(
    scores: NDArray[np.float32], parting: float, config: DetectionConfig, *, is_chi_square: bool
) -> tuple[ScoreCurve, float]:
    """Find how scores map to probabilities, and from which probability pixels count as changed."""
    if not scores.max() > 0:
        return ScoreCurve(np.zeros(1, np.float32), np.zeros(1, np.float32)), 0.5
    mixture = fit_mixture(scores, parting)
    if config.false_alarms is not None:
        mixture = refine_mixture(scores, mixture)
        parting = mixture.score_of_false_alarms(config.false_alarms)
    curve = make_curve(scores, mixture, is_chi_square=is_chi_square)
    return curve, curve.threshold(parting)
