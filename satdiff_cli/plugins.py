"""List plug-ins by file name without importing them; load one by its name."""

import importlib
from pathlib import Path
from types import ModuleType
from typing import Literal

from satdiff_cli.errors import require_known

PluginKind = Literal["formats", "models", "detectors", "outputs"]

PACKAGE_DIR = Path(__file__).parent


def list_plugins(kind: PluginKind) -> list[str]:
    """Name the plug-ins of one kind, sorted; a plug-in's name is its file's."""
    return sorted(path.stem for path in (PACKAGE_DIR / kind).glob("[!_]*.py"))


def load_plugin(kind: PluginKind, name: str) -> ModuleType:
    """Import one plug-in.

    Raises:
        ConfigError: There is no such plug-in; the hint lists those there are.
    """
    require_known(kind.removesuffix("s"), name, list_plugins(kind))
    return importlib.import_module(f"satdiff_cli.{kind}.{name}")
