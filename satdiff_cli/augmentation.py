"""Augment a sample: move both dates, label and valid alike; change the light of each date on its own.

albumentations' own photometric transforms clip float images to [0, 1] (GaussianBlur and GaussNoise, too), while
normalised channels run from about -3 to 10: those here do not.
"""

import os
import random
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else its import asks PyPI for a newer version

import albumentations

from satdiff_cli.config import AugmentKind
from satdiff_cli.probability import LABEL_IGNORE

Channels = NDArray[np.float32]
Label = NDArray[np.uint8]
Valid = NDArray[np.bool_]
Elevation = NDArray[np.float32]

SWAP_PROBABILITY = 0.5
AFFINE_PROBABILITY, MAX_ROTATION, SCALES = 0.5, 45.0, (0.75, 1.33)  # [degrees], zoomed out … zoomed in
BLUR_PROBABILITY, BLUR_SIGMAS = 0.2, (0.5, 1.5)  # [px]
NOISE_PROBABILITY, NOISE_SIGMAS = 0.3, (0.05, 0.15)  # [standard deviations of a channel]
DROPOUT_PROBABILITY = 0.1
MAX_PLANES = 100  # OpenCV 5 takes no image of more than 128 channels


class ChannelJitter(albumentations.ImageOnlyTransform):  # type: ignore[misc]  # albumentations is untyped
    """Change contrast and brightness of an image (H, W, C).

    Args:
        amount: Largest change of the factor, and of the offset [standard deviations].
        shared: All channels change alike, as under another light, instead of each on its own.
    """

    def __init__(self, amount: float, *, shared: bool, p: float = 1.0) -> None:
        super().__init__(p=p)
        self.amount = amount
        self.shared = shared

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        """Draw a factor and an offset for each channel."""
        del data
        count = params["shape"][2]
        change = self.random_generator.uniform(-self.amount, self.amount, (2, 1 if self.shared else count))
        factor, offset = np.broadcast_to(change.astype(np.float32), (2, count))
        return {"factor": 1 + factor, "offset": offset}

    def apply(self, img: Channels, *, factor: Channels, offset: Channels, **_: Any) -> Channels:
        """Return the changed image (H, W, C)."""
        height, width, _ = img.shape
        # Whole rows: numpy takes three times as long over a last axis of a few channels.
        rows = img.reshape(height, -1) * np.tile(factor, width)
        rows += np.tile(offset, width)
        return rows.reshape(img.shape)


class ValidBlur(albumentations.ImageOnlyTransform):  # type: ignore[misc]  # albumentations is untyped
    """Blur an image (H, W, C) with a Gaussian; pixels that are not valid do not leak into the others.

    The mask that goes with the image is valid, uint8 (H, W). Normalized convolution, Knutsson and Westin 1993.

    Args:
        sigmas: Smallest and largest width [px].
    """

    def __init__(self, sigmas: tuple[float, float], p: float = 1.0) -> None:
        super().__init__(p=p)
        self.sigmas = sigmas

    @property
    def targets_as_params(self) -> list[str]:
        """Name what the draw depends on."""
        return ["mask"]

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        """Draw a width; pass on which pixels are valid."""
        del params
        return {"sigma": self.random_generator.uniform(*self.sigmas), "valid": data["mask"]}

    def apply(self, img: Channels, *, sigma: float, valid: Label, **_: Any) -> Channels:
        """Return the blurred image (H, W, C)."""
        parts = [cv2.GaussianBlur(part, (0, 0), sigma) for part in split_planes(img * valid[..., None])]
        blurred = np.dstack(parts)  # back to (H, W, 1) if there is only one channel
        share = cv2.GaussianBlur(valid.astype(np.float32), (0, 0), sigma)
        return (blurred / np.maximum(share, 1e-3)[..., None]).astype(np.float32, copy=False)


class ChannelNoise(albumentations.ImageOnlyTransform):  # type: ignore[misc]  # albumentations is untyped
    """Add Gaussian noise to each value of an image (H, W, C).

    Args:
        sigmas: Smallest and largest standard deviation of the noise.
    """

    def __init__(self, sigmas: tuple[float, float], p: float = 1.0) -> None:
        super().__init__(p=p)
        self.sigmas = sigmas

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        """Draw the noise."""
        del data
        sigma = np.float32(self.random_generator.uniform(*self.sigmas))
        return {"noise": sigma * self.random_generator.standard_normal(params["shape"], dtype=np.float32)}

    def apply(self, img: Channels, *, noise: Channels, **_: Any) -> Channels:
        """Return the noisy image (H, W, C)."""
        return img + noise


class Augmentation:
    """Augment a sample; what it returns depends on the sample and the generator alone, not on earlier calls.

    Two kinds of draws never mix: geometric ones are shared by both dates, label and valid; photometric ones are made
    anew for each date. Crops are to be square: a quarter turn swaps height and width.

    Args:
        strength: See ``make_augmentation``.
        geometric: Moves all channels and the label.
        photometric: Changes one date.
        shift: Largest shift of the after date [px].
        swap_dates: Whether the dates are exchanged half of the time.
    """

    def __init__(
        self,
        strength: AugmentKind,
        geometric: albumentations.Compose,
        photometric: albumentations.Compose,
        *,
        shift: int,
        swap_dates: bool,
    ) -> None:
        self._strength = strength
        self._geometric = geometric
        self._photometric = photometric
        self._shift = shift
        self._swap_dates = swap_dates

    def __call__(
        self, channels: Channels, label: Label, valid: Valid, rng: np.random.Generator
    ) -> tuple[Channels, Label, Valid]:
        """Return the augmented sample as new arrays; what was passed is left as it is.

        Args:
            channels: float32 (T, C, H, W), normalised, so that 0 is the mean.
            label: uint8 (H, W): 0, 1 or class ids, and 255; or (T, H, W), one a date.
            valid: bool (H, W).
            rng: Source of randomness.

        Returns:
            Channels, label and valid of the same shapes; where not valid, all channels are 0 and the label is 255.
        """
        channels, label, valid, _ = self._augment(channels, label, valid, None, rng)
        return channels, label, valid

    def with_elevation(
        self, channels: Channels, label: Label, valid: Valid, elevation: Elevation, rng: np.random.Generator
    ) -> tuple[Channels, Label, Elevation]:
        """Return the augmented sample with its elevation, float32 (H, W), NaN where not measured or not valid."""
        channels, label, valid, moved = self._augment(channels, label, valid, elevation, rng)
        assert moved is not None
        return channels, label, np.where(valid, moved, np.float32(np.nan))

    def _augment(
        self, channels: Channels, label: Label, valid: Valid, elevation: Elevation | None, rng: np.random.Generator
    ) -> tuple[Channels, Label, Valid, Elevation | None]:
        """Augment a sample, and its elevation if there is one."""
        if self._strength == "none":
            return *blank_invalid(channels, label, valid), elevation
        if self._swap_dates and rng.random() < SWAP_PROBABILITY:
            channels, label = channels[::-1], label[::-1] if label.ndim == 3 else label
        if self._shift and len(channels) > 1:
            channels, valid = self._misregister(channels, valid, rng)
        images, label, valid, elevation = self._move(channels, label, valid, elevation, rng)
        if self._photometric.transforms:
            mask = valid.astype(np.uint8)
            images = [run(self._photometric, image, mask, int(rng.integers(2**63)))["image"] for image in images]
        result = np.empty((len(images), channels.shape[1], *valid.shape), np.float32)
        for date, image in enumerate(images):
            result[date] = image.transpose(2, 0, 1)
        if self._strength == "strong":
            result = drop_channel(result, rng)
        return *blank_invalid(result, label, valid), elevation

    def _misregister(self, channels: Channels, valid: Valid, rng: np.random.Generator) -> tuple[Channels, Valid]:
        """Shift the after date at random."""
        most = np.minimum(self._shift, np.array(valid.shape) - 1)
        row_shift, col_shift = rng.integers(-most, most + 1).tolist()
        return shift_after(channels, valid, row_shift, col_shift)

    def _move(
        self, channels: Channels, label: Label, valid: Valid, elevation: Elevation | None, rng: np.random.Generator
    ) -> tuple[list[Channels], Label, Valid, Elevation | None]:
        """Move all dates, label, valid and elevation alike; a pixel stays valid when all that it is made of are.

        Returns:
            An image (H, W, C) for each date; label; valid; elevation.
        """
        dates, count, height, width = channels.shape
        # Elevation and valid travel behind the channels, to be interpolated like them.
        stacked = np.empty((height, width, dates * count + 1 + (elevation is not None)), np.float32)
        stacked[..., : dates * count] = channels.reshape(dates * count, height, width).transpose(1, 2, 0)
        if elevation is not None:
            stacked[..., -2] = elevation
        stacked[..., -1] = valid
        mask = label if label.ndim == 2 else np.ascontiguousarray(label.transpose(1, 2, 0))
        # A seed instead of the generator: each part of the planes has to move alike.
        seed = int(rng.integers(2**63))
        parts = [run(self._geometric, part, mask, seed) for part in split_planes(stacked)]
        image = np.concatenate([part["image"] for part in parts], axis=-1) if len(parts) > 1 else parts[0]["image"]
        images = [image[..., date * count : (date + 1) * count] for date in range(dates)]
        moved = parts[0]["mask"]
        label = moved if label.ndim == 2 else moved.transpose(2, 0, 1)
        return images, label, image[..., -1] > 0.9999, None if elevation is None else image[..., -2]


def make_augmentation(strength: AugmentKind, *, jitter: float, shift: int, swap_dates: bool) -> Augmentation:
    """Make an augmentation.

    - ``none`` changes nothing, whatever the other arguments say.
    - ``light`` mirrors and turns by quarter turns (all eight symmetries of the square).
    - ``standard`` also changes contrast and brightness of each channel of each date by up to ``jitter``.
    - ``strong`` also rotates by up to 45° and scales by 0.75 to 1.33 (half of the time); changes the light of a whole
      date by up to ``jitter``, blurs (0.2 of the time) and adds noise (0.3) to each date on its own; and sets one
      channel of all dates to 0 (0.1).

    Args:
        strength: One of the above.
        jitter: Largest change of the factor, and of the offset [standard deviations].
        shift: Largest whole-pixel shift of the after date along each axis, against misregistration [px].
        swap_dates: Exchange the dates half of the time.
    """
    geometric: list[Any] = [albumentations.D4(p=1.0)]
    photometric: list[Any] = []
    if strength in ("standard", "strong") and jitter:
        photometric.append(ChannelJitter(jitter, shared=False))
    if strength == "strong":
        geometric.append(make_affine())
        photometric += [ChannelJitter(jitter, shared=True)] if jitter else []
        photometric += [
            ValidBlur(BLUR_SIGMAS, p=BLUR_PROBABILITY),
            ChannelNoise(NOISE_SIGMAS, p=NOISE_PROBABILITY),
        ]
    return Augmentation(
        strength,
        albumentations.Compose(geometric),
        albumentations.Compose(photometric),
        shift=shift,
        swap_dates=swap_dates,
    )


def make_affine() -> albumentations.Affine:
    """Make the rotation and scaling about the centre; what comes from outside is 0, in the label 255."""
    return albumentations.Affine(
        rotate=(-MAX_ROTATION, MAX_ROTATION),
        scale=SCALES,
        keep_ratio=True,
        balanced_scale=True,  # as often smaller as larger
        interpolation=cv2.INTER_LINEAR,
        mask_interpolation=cv2.INTER_NEAREST,
        fill=0,
        fill_mask=LABEL_IGNORE,
        p=AFFINE_PROBABILITY,
    )


def run(transforms: albumentations.Compose, image: Channels, mask: Label, seed: int) -> dict[str, Any]:
    """Apply transforms to image (H, W, C) and mask (H, W), all drawing from one generator.

    ``Compose.set_random_seed`` would start a generator for every transform from the same seed: a transform of
    probability 0.2 would then only happen along with one of 0.3.
    """
    transforms.set_random_state(np.random.default_rng(seed), random.Random(seed))  # noqa: S311 -- not for secrets
    result: dict[str, Any] = transforms(image=image, mask=mask)
    return result


def split_planes(image: Channels) -> list[Channels]:
    """Split an image (H, W, C) into as few parts (H, W, ≤ 100) as OpenCV can take."""
    return np.array_split(image, -(-image.shape[-1] // MAX_PLANES), axis=-1)


def shift_after(channels: Channels, valid: Valid, row_shift: int, col_shift: int) -> tuple[Channels, Valid]:
    """Move the last date down by ``row_shift`` and right by ``col_shift``; what comes from outside is not valid.

    Args:
        channels: (T, C, H, W), before first.
        valid: (H, W).
        row_shift: Less than H either way [px].
        col_shift: Less than W either way [px].
    """
    height, width = valid.shape
    to_rows, from_rows = shifted_slices(row_shift, height)
    to_cols, from_cols = shifted_slices(col_shift, width)
    shifted, observed = channels.copy(), np.zeros_like(valid)
    shifted[-1] = 0
    shifted[-1, :, to_rows, to_cols] = channels[-1, :, from_rows, from_cols]
    observed[to_rows, to_cols] = valid[from_rows, from_cols]
    return shifted, valid & observed


def shifted_slices(shift: int, length: int) -> tuple[slice, slice]:
    """Return where values go to and come from when shifted: by 2 of 5 to 2:5 from 0:3, by -2 to 0:3 from 2:5."""
    ahead, back = max(shift, 0), max(-shift, 0)
    return slice(ahead, length - back), slice(back, length - ahead)


def drop_channel(channels: Channels, rng: np.random.Generator) -> Channels:
    """Set one channel to 0 in all dates, now and then; in one date alone it would look like change."""
    count = channels.shape[1]
    if count == 1 or rng.random() >= DROPOUT_PROBABILITY:
        return channels
    kept = np.arange(count) != rng.integers(count)
    return channels * kept[:, None, None]


def blank_invalid(channels: Channels, label: Label, valid: Valid) -> tuple[Channels, Label, Valid]:
    """Return channels (T, C, H, W) with 0 and label (H, W) with 255 where not valid, as new arrays."""
    is_invalid = ~valid
    blank = channels.copy()
    np.copyto(blank, 0, where=is_invalid)
    return blank, np.where(is_invalid, np.uint8(LABEL_IGNORE), label), ~is_invalid
