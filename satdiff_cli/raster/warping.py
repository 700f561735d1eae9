"""What a scene's file says is valid, and views of scenes on other grids."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.vrt import WarpedVRT
from scipy import ndimage

from satdiff_cli.config import Resampling, Zeros
from satdiff_cli.raster.grids import Grid, iterate_strips, to_rasterio

_TOLERANCE_PX = 0.01  # of positions between coordinate systems, which GDAL interpolates

# Coordinates within a picture, to warp between grids that lie nowhere on Earth.
PICTURE_CRS = 'LOCAL_CS["picture",UNIT["metre",1]]'


def is_masked(dataset: Any) -> bool:
    """Whether the file itself says which pixels are valid, by a nodata value, a mask or an alpha band."""
    return any(MaskFlags.all_valid not in flags for flags in dataset.mask_flag_enums)


def has_palette(dataset: Any) -> bool:
    """Whether the values of the first band are places in a table of colours."""
    return bool(dataset.colorinterp[0] == ColorInterp.palette)


def image_bands(dataset: Any, *, keep_alpha: bool) -> list[int]:
    """Return the 1-based numbers of the bands that hold an image, i.e. all but alpha.

    ``keep_alpha`` says that none of them is alpha: GDAL tags the fourth of four byte bands so by default.
    """
    return [
        number
        for number, meaning in zip(dataset.indexes, dataset.colorinterp, strict=True)
        if keep_alpha or meaning != ColorInterp.alpha
    ]


def colour_names(dataset: Any, bands: Sequence[int]) -> list[str]:
    """Name bands by the colours that the file says they show; empty for one that is no colour."""
    colours = (ColorInterp.red, ColorInterp.green, ColorInterp.blue)
    meanings = [dataset.colorinterp[band - 1] for band in bands]
    return [meaning.name if meaning in colours else "" for meaning in meanings]


def read_valid_mask(dataset: Any, bands: Sequence[int], zeros: Zeros = "border") -> NDArray[np.bool_]:
    """Find the pixels that the given bands observed.

    The file's own nodata value, mask or alpha band decides. Without one, pixels that are 0 in every band and connected
    to the scene's border are not valid. Pixels with NaN or infinity in a band never are.

    Args:
        dataset: The file, open.
        bands: 1-based numbers of the bands.
        zeros: Where pixels that are 0 in every band are not valid.

    Returns:
        bool (H, W).
    """
    valid = np.ones(dataset.shape, dtype=bool)
    is_alpha_a_band = any(dataset.colorinterp[band - 1] == ColorInterp.alpha for band in bands)
    has_own_mask = is_masked(dataset) and not is_alpha_a_band
    looks_at_zero = zeros == "anywhere" or (zeros == "border" and not has_own_mask)
    zero = np.zeros(dataset.shape if looks_at_zero else (0, 0), dtype=bool)
    for strip in iterate_strips(*dataset.shape):
        pixels = dataset.read(list(bands), window=to_rasterio(strip))
        if np.issubdtype(pixels.dtype, np.floating):
            valid[strip.slices] = np.isfinite(pixels).all(axis=0)
        if has_own_mask:
            # Not dataset_mask(), in which the bands of the other date would vouch for these.
            valid[strip.slices] &= (dataset.read_masks(list(bands), window=to_rasterio(strip)) > 0).any(axis=0)
        if looks_at_zero:
            zero[strip.slices] = (pixels == 0).all(axis=0)
    if not looks_at_zero:
        return valid
    return valid & ~(zero if zeros == "anywhere" else touching_border(zero))


def touching_border(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Keep the 4-connected regions of a bool mask (H, W) that touch its border."""
    edges = np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]])
    if not edges.any():
        return np.zeros_like(mask)
    regions, _ = ndimage.label(mask)
    edge_regions = np.unique(np.concatenate([regions[0], regions[-1], regions[:, 0], regions[:, -1]]))
    return np.isin(regions, edge_regions[edge_regions > 0])


def open_warped(dataset: Any, grid: Grid, target: Grid, resampling: Resampling) -> Any:
    """Open a view on another grid of a dataset that lies on ``grid``, warped as it is read."""
    return WarpedVRT(
        dataset,
        src_crs=grid.crs,
        src_transform=grid.affine,
        crs=target.crs,
        transform=target.affine,
        height=target.height,
        width=target.width,
        resampling=rasterio.enums.Resampling[resampling],
        warp_mem_limit=256,
        tolerance=_TOLERANCE_PX,
    )


def warp_mask(valid: NDArray[np.bool_], grid: Grid, target: Grid) -> NDArray[np.bool_]:
    """Warp a valid mask to another grid with the nearest pixel; outside it nothing is valid."""
    result = np.zeros(target.shape, dtype=np.uint8)
    rasterio.warp.reproject(
        valid.astype(np.uint8),
        result,
        src_transform=grid.affine,
        src_crs=grid.crs,
        dst_transform=target.affine,
        dst_crs=target.crs,
        resampling=rasterio.enums.Resampling.nearest,
    )
    return result > 0
