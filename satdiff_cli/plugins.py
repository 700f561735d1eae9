"""List plug-ins by file name without importing them; load one by its name."""

import difflib
import importlib
from pathlib import Path
from types import ModuleType
from typing import Literal

from satdiff_cli.errors import ConfigError

PluginKind = Literal["formats", "models", "outputs"]

PACKAGE_DIR = Path(__file__).parent


def list_plugins(kind: PluginKind) -> list[str]:
    """Name the plug-ins of one kind, sorted; a plug-in's name is its file's."""
    return sorted(path.stem for path in (PACKAGE_DIR / kind).glob("[!_]*.py"))


def load_plugin(kind: PluginKind, name: str) -> ModuleType:
    """Import one plug-in.

    Raises:
        ConfigError: There is no such plug-in; the hint lists those there are.
    """
    names = list_plugins(kind)
    if name not in names:
        singular = kind.removesuffix("s")
        near = difflib.get_close_matches(name, names, n=1)
        guess = f"did you mean {near[0]}? " if near else ""
        raise ConfigError(f"unknown {singular} {name!r}", f"{guess}choose one of {', '.join(names)}")
    return importlib.import_module(f"satdiff_cli.{kind}.{name}")
