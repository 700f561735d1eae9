"""Samples: both dates and the label turned alike, crops around change, and the same sample at the same index."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CORNER, pair_id
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from satdiff_cli import compositing, pairing, raster, samples, tiling
from satdiff_cli.augmentation import make_augmentation
from satdiff_cli.compositing import CompositeConfig
from satdiff_cli.pairing import Pair
from satdiff_cli.radiometry import Normalization
from satdiff_cli.samples import (
    CropDataset,
    EpochSampler,
    LabelledScene,
    Sample,
    SampleConfig,
    SceneCache,
    TileDataset,
    fixed_statistics,
    read_scene,
)
from satdiff_cli.tiling import Tile, TilingConfig
from satdiff_cli.windows import Window

HEIGHT, WIDTH = 70, 110
BANDS = ("red", "green", "blue")
# Fixed statistics that change nothing: the channels are the bands' own values.
PLAIN = Normalization("fixed", BANDS, BANDS, mean=(0.0,) * 3, std=(1.0,) * 3)


def make_pair(folder: Path, label: NDArray[np.uint8], *, name: str = "a", corner: bool = False) -> Pair:
    """Write a composite whose bands say where a pixel lies: its row, its column, and its label."""
    height, width = label.shape
    rows, cols = np.mgrid[1 : height + 1, 1 : width + 1]
    grid = raster.Grid(height, width)
    for date, shift in (("before", 0), ("after", 1000)):
        pixels = np.stack([rows + shift, cols + shift, label.astype(int) + 10 + shift]).astype(np.uint16)
        if corner:
            pixels[:, :20, :30] = 0
        raster.write_scene(folder / f"{name}_{date}.tif", pixels, grid)
    composite, label_path = folder / f"{name}.tif", folder / f"{name}_label.tif"
    before, after = ((folder / f"{name}_{date}.tif",) for date in ("before", "after"))
    compositing.write_composite(before, after, composite, CompositeConfig(bands=BANDS))
    raster.write_band(label_path, label, grid)
    return Pair(name, name, composite, label_path, "0", "", "")


def make_label(*, change: bool = True) -> NDArray[np.uint8]:
    label = np.zeros((HEIGHT, WIDTH), np.uint8)
    if change:
        label[40:46, 80:84] = 1
        label[3:5, 100:103] = 255
    return label


def plan(pair: Pair, size: int = 48) -> list[Tile]:
    return tiling.plan_pair_tiles(pair, TilingConfig(size=size, overlap=8))


def crops(
    tiles: Sequence[Tile],
    pair: Pair,
    *,
    jitter: float = 0.0,
    change_share: float = 0.7,
    size: int = 32,
    cache_gb: float = 1.0,
) -> CropDataset:
    augmentation = make_augmentation("standard", jitter=jitter, shift=0, swap_dates=False)
    config = SampleConfig(PLAIN, size=size, change_share=change_share, augmentation=augmentation, seed=3)
    return CropDataset(tiles, {pair.pair_id: pair}, SceneCache([pair], cache_gb), config)


def same(first: Sample, second: Sample) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first)


def test_both_dates_and_the_label_are_turned_alike(tmp_path: Path) -> None:
    pair = make_pair(tmp_path, make_label())
    dataset = crops(plan(pair), pair)
    turned = set()
    for index in range(60):
        sample = dataset[index]
        before, after, label = (sample[name].numpy() for name in ("before", "after", "label"))
        np.testing.assert_array_equal(after, before + 1000)
        known = label[0] != 255
        np.testing.assert_array_equal(before[2][known], label[0][known] + 10.0)
        row_steps, col_steps = np.diff(before[0], axis=0), np.diff(before[0], axis=1)
        inside = known[:-1, :-1].all()
        turned.add((float(np.median(row_steps)), float(np.median(col_steps))) if inside else None)
    # Rows run down, up, right and left in some view: all four quarter turns are drawn.
    assert {(1.0, 0.0), (-1.0, 0.0), (0.0, 1.0), (0.0, -1.0)} <= turned


def test_pixels_of_a_crop_are_those_of_the_scene(tmp_path: Path) -> None:
    label = make_label()
    pair = make_pair(tmp_path, label)
    dataset = crops(plan(pair), pair)
    for index in range(20):
        sample = dataset[index]
        rows, cols = (sample["before"][band].numpy().astype(int) - 1 for band in (0, 1))
        np.testing.assert_array_equal(label[rows, cols], sample["label"][0].numpy())
        assert len(set(zip(rows.ravel().tolist(), cols.ravel().tolist(), strict=True))) == 32 * 32


def test_crops_around_change_contain_change(tmp_path: Path) -> None:
    pair = make_pair(tmp_path, make_label())
    dataset = crops(plan(pair), pair, change_share=1.0)
    assert all((dataset[index]["label"] == 1).any() for index in range(40))


def test_crops_around_change_contain_change_that_is_valid(tmp_path: Path) -> None:
    label = make_label(change=False)
    label[10:19, 10:29] = 1  # where nothing was observed
    label[10:12, 31:33] = 1  # beside it
    pair = make_pair(tmp_path, label, corner=True)
    dataset = crops(plan(pair, size=100), pair, change_share=1.0)
    assert all((dataset[index]["label"] == 1).any() for index in range(30))


def test_the_share_of_crops_around_change_is_the_one_asked_for(tmp_path: Path) -> None:
    pair = make_pair(tmp_path, make_label())
    tiles = plan(pair, size=32)
    changed = {tile.tile_id for tile in tiles if tile.change_fraction > 0}
    by_chance = len(changed) / len(tiles)
    share = np.mean([(crops(tiles, pair, change_share=0.7)[i]["label"] == 1).any().item() for i in range(150)])
    assert abs(share - (0.7 + 0.3 * by_chance)) < 0.12


def test_labels_without_any_change_give_samples_all_the_same(tmp_path: Path) -> None:
    pair = make_pair(tmp_path, make_label(change=False))
    sample = crops(plan(pair), pair, change_share=1.0)[0]
    assert not sample["label"].any()
    assert sample["before"].shape == (3, 32, 32)


def test_the_sample_at_an_index_is_always_the_same(tmp_path: Path) -> None:
    pair = make_pair(tmp_path, make_label())
    tiles = plan(pair)
    first, second = crops(tiles, pair, jitter=0.2), crops(tiles, pair, jitter=0.2)
    backwards = {index: second[index] for index in reversed(range(8))}
    assert all(same(first[index], backwards[index]) for index in range(8))
    assert not same(first[0], first[1])


def test_jitter_changes_each_date_on_its_own_and_leaves_the_label(tmp_path: Path) -> None:
    pair = make_pair(tmp_path, make_label())
    plain, jittered = crops(plan(pair), pair)[5], crops(plan(pair), pair, jitter=0.2)[5]
    assert torch.equal(plain["label"], jittered["label"])
    gain = [float(jittered[date][0].std() / plain[date][0].std()) for date in ("before", "after")]
    assert gain[0] != pytest.approx(gain[1], abs=1e-3)
    assert all(0.79 < value < 1.21 for value in gain)


@pytest.mark.parametrize("jitter", [0.0, 0.2])
def test_what_is_not_valid_is_0_in_both_dates_and_255_in_the_label(tmp_path: Path, jitter: float) -> None:
    pair = make_pair(tmp_path, make_label(), corner=True)
    sample = crops(plan(pair), pair, jitter=jitter, change_share=0.0)
    seen = 0
    for index in range(30):
        item = sample[index]
        missing = (item["before"] == 0).all(dim=0)
        assert torch.equal(missing, (item["after"] == 0).all(dim=0))
        assert (item["label"][0][missing] == 255).all()
        seen += int(missing.sum())
    assert seen


def test_pixels_whose_label_is_ignored_are_still_seen(tmp_path: Path) -> None:
    label = make_label(change=False)
    label[:, :60] = 255
    pair = make_pair(tmp_path, label)
    for jitter in (0.0, 0.2):
        dataset = crops(plan(pair), pair, jitter=jitter)
        assert all((dataset[index]["before"] != 0).any(dim=0).all() for index in range(10))


def test_scenes_smaller_than_a_sample_are_padded_as_not_valid(tmp_path: Path) -> None:
    pair = make_pair(tmp_path, np.ones((20, 31), np.uint8))
    sample = crops(plan(pair), pair, jitter=0.2, size=48)[0]
    assert sample["label"].shape == (1, 48, 48)
    assert int((sample["label"] == 1).sum()) == 20 * 31
    assert int((sample["label"] == 255).sum()) == 48 * 48 - 20 * 31
    assert (sample["after"][:, sample["label"][0] == 255] == 0).all()


def test_a_scene_of_one_pixel_gives_a_sample(tmp_path: Path) -> None:
    pair = make_pair(tmp_path, np.ones((1, 1), np.uint8))
    sample = crops(plan(pair), pair)[0]
    assert int((sample["label"] == 1).sum()) == 1


def test_tiles_for_validation_are_the_scene_as_it_is(tmp_path: Path) -> None:
    label = make_label()
    pair = make_pair(tmp_path, label, corner=True)
    tiles = plan(pair)
    dataset = TileDataset(tiles, {"a": pair}, SceneCache([pair], 1.0), PLAIN, size=60)
    assert len(dataset) == len(tiles)
    for index, tile in enumerate(tiles):
        sample, window = dataset[index], tile.window
        expected = label[window.slices].copy()
        expected[(sample["before"][0].numpy() == 0)[: window.height, : window.width]] = 255
        np.testing.assert_array_equal(sample["label"][0, : window.height, : window.width], expected)
        assert (sample["label"][0, window.height :] == 255).all()
        assert (sample["label"][0, :, window.width :] == 255).all()


def test_the_sampler_hands_out_other_samples_each_epoch_and_the_same_ones_again() -> None:
    sampler = EpochSampler(steps=2, batch_size=3)
    first = list(sampler)
    sampler.set_epoch(2)
    assert (first, list(sampler), len(sampler)) == ([0, 1, 2, 3, 4, 5], [12, 13, 14, 15, 16, 17], 6)


@given(steps=st.integers(1, 5), share=st.integers(1, 4), processes=st.integers(1, 4), epoch=st.integers(0, 3))
def test_processes_share_every_batch_and_see_each_sample_once(
    steps: int, share: int, processes: int, epoch: int
) -> None:
    batch_size = share * processes
    whole = EpochSampler(steps, batch_size)
    parts = [EpochSampler(steps, batch_size, (rank, processes)) for rank in range(processes)]
    for sampler in (whole, *parts):
        sampler.set_epoch(epoch)
    rows = [np.array(list(part)).reshape(steps, share) for part in parts]
    assert [len(part) for part in parts] == [steps * share] * processes
    # Joined in the order of the processes, the parts of each batch are the batch of a single process.
    np.testing.assert_array_equal(np.concatenate(rows, axis=1).ravel(), list(whole))


@pytest.mark.parametrize("processes", [1, 2, 3, 5])
def test_processes_share_the_tiles_evenly_and_count_each_once(tmp_path: Path, processes: int) -> None:
    pair = make_pair(tmp_path, make_label())
    tiles = plan(pair)
    cache = SceneCache([pair], 1.0)
    whole = TileDataset(tiles, {"a": pair}, cache, PLAIN, size=48)
    parts = [
        TileDataset(tiles, {"a": pair}, cache, PLAIN, size=48, share=(rank, processes)) for rank in range(processes)
    ]
    assert len({len(part) for part in parts}) == 1
    items = [part[index] for part in parts for index in range(len(part))]
    counted = [sum(int((item["label"] == value).sum()) for item in items) for value in (0, 1)]
    expected = [sum(int((whole[index]["label"] == value).sum()) for index in range(len(whole))) for value in (0, 1)]
    assert counted == expected


def test_scenes_that_fit_are_read_once_and_others_by_window(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pair, other = make_pair(tmp_path, make_label()), make_pair(tmp_path, make_label(), name="b")
    scene_gb = HEIGHT * WIDTH * (2 * 3 * 2 + 2) / 1e9  # two dates of three bands of two bytes, label and mask
    cache = SceneCache([pair, other], 1.5 * scene_gb)
    assert cache.nbytes == round(scene_gb * 1e9)
    reads: list[tuple[str, Window | None]] = []

    def count(pair: Pair, window: Window | None = None, *, elevation: None) -> LabelledScene:
        reads.append((pair.pair_id, window))
        return read_scene(pair, window, elevation=elevation)

    monkeypatch.setattr(samples, "read_scene", count)
    window = Window(5, 7, 30, 41)
    for _ in range(3):
        first, second = cache.read(pair, window), cache.read(other, window)
        np.testing.assert_array_equal(first.pixels, second.pixels)
        np.testing.assert_array_equal(first.label, second.label)
        assert first.pixels.shape == (6, 30, 41)
    assert reads == [("a", None), *[("b", window)] * 3]


def test_samples_do_not_depend_on_what_is_cached(tmp_path: Path) -> None:
    pair = make_pair(tmp_path, make_label(), corner=True)
    cached, read = (crops(plan(pair), pair, jitter=0.2, cache_gb=size) for size in (1.0, 0.0))
    assert all(same(cached[index], read[index]) for index in range(10))


def test_fixed_statistics_are_those_of_all_valid_pixels_of_both_dates(tmp_path: Path) -> None:
    pair = make_pair(tmp_path, make_label())
    with raster.Composite(pair.composite) as composite:
        pixels = composite.read(Window(0, 0, HEIGHT, WIDTH)).astype(np.float64).reshape(2, 3, -1)
    found = fixed_statistics([pair], Normalization("fixed", BANDS, BANDS))
    np.testing.assert_allclose(found["mean"], pixels.mean(axis=(0, 2)))
    np.testing.assert_allclose(found["std"], pixels.transpose(1, 0, 2).reshape(3, -1).std(axis=1))


def test_samples_of_real_scenes_are_normalised(project_root: Path) -> None:
    pairs = {pair.pair_id: pair for pair in pairing.read_pairs(project_root / "data")}
    tiles = [tile for tile in tiling.read_tiles(project_root / "data") if tile.pair_id == pair_id(CORNER)]
    bands = (*BANDS, "nir")
    normalization = Normalization("scene", bands, bands)
    augmentation = make_augmentation("light", jitter=0.0, shift=0, swap_dates=False)
    config = SampleConfig(normalization, size=64, change_share=0.7, augmentation=augmentation)
    dataset = CropDataset(tiles, pairs, SceneCache(list(pairs.values()), 1.0), config)
    found = [dataset[index] for index in range(20)]
    values = torch.stack([sample["after"] for sample in found])
    valid = torch.stack([sample["label"][0] != 255 for sample in found])
    assert not valid.all()
    assert abs(float(values.movedim(1, -1)[valid].mean())) < 0.5
    assert 0.5 < float(values.movedim(1, -1)[valid].std()) < 1.5
