"""Named settings of an experiment: one TOML file each, its first line a comment that says what it is."""

from pathlib import Path
from typing import Any

from satdiff_cli.config import read_toml
from satdiff_cli.errors import require_known

_FOLDER = Path(__file__).parent


def list_presets() -> dict[str, str]:
    """Return the presets, sorted, each with its description."""
    files = sorted(_FOLDER.glob("*.toml"))
    return {path.stem: path.read_text(encoding="utf-8").split("\n", 1)[0].removeprefix("# ") for path in files}


def read_preset(name: str) -> dict[str, Any]:
    """Read the settings of a preset.

    Raises:
        ConfigError: There is none of this name; the hint lists those there are.
    """
    require_known("preset", name, list(list_presets()))
    return read_toml(_FOLDER / f"{name}.toml")
