"""Describe raster files in words."""

from pathlib import Path
from typing import Any

from satdiff_cli.probability import PROBABILITY_NODATA
from satdiff_cli.raster.composites import STATISTICS_TAG
from satdiff_cli.raster.files import open_raster
from satdiff_cli.raster.grids import grid_of


def describe_raster(path: Path) -> dict[str, Any]:
    """Describe a raster file in words, for ``satdiff info``."""
    with open_raster(path) as dataset:
        tags, grid = dataset.tags(), grid_of(dataset)
        kind = "scene"
        if STATISTICS_TAG in tags:
            kind = "composite"
        elif dataset.nodata == PROBABILITY_NODATA and dataset.dtypes[0] == "uint16":
            kind = "probability"
        return {
            "what": f"{kind} ({path})",
            "size": f"{grid.height} × {grid.width} px, {dataset.count} bands, {dataset.dtypes[0]}",
            "bands": ", ".join(description or "?" for description in dataset.descriptions),
            "georeference": f"{dataset.crs}, pixel {grid.transform[0]:g} × {-grid.transform[4]:g}"
            if grid.is_georeferenced
            else "none",
            "nodata": str(dataset.nodata),
            "tags": [f"{name} = {value}" for name, value in tags.items() if name != STATISTICS_TAG],
        }
