"""The errors that a person can cause, each with what is wrong and what to type next."""

import difflib
from collections.abc import Iterable, Sequence


class SatdiffError(Exception):
    """Report a mistake in the input, the files or the command line.

    The command line prints ``message`` after ``error`` and ``hint`` after ``hint`` and exits with 1.

    Args:
        message: What we got, what was expected, and which file or id it is about.
        hint: The command or the flag that mends it; may be empty.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __reduce__(self) -> tuple[type["SatdiffError"], tuple[str, str]]:
        """Keep the hint on the way from one process to another."""
        return type(self), (self.message, self.hint)


class ConfigError(SatdiffError):
    """A setting has an unknown name or an impossible value."""


class CatalogError(SatdiffError):
    """Scenes, a table or labels cannot be matched to pairs."""


class RasterError(SatdiffError):
    """A raster file cannot be read, or does not fit the others."""


class ArtifactError(SatdiffError):
    """A file that another step should have written is missing, of another kind, or damaged."""


class KeyMismatchError(SatdiffError):
    """Two artifacts that are joined do not hold the same ids."""


class OutputExistsError(SatdiffError):
    """The output is there already and ``--overwrite`` was not given."""


class OutputError(SatdiffError):
    """The output cannot be written to the end, mostly because the disk is full."""


class UnsafePickleError(ArtifactError):
    """A pickle asks for something other than plain data; it was not loaded."""


class WeightsError(SatdiffError):
    """Weights are missing, or do not fit the network."""


def suggest(name: str, known: Iterable[str], rest: str = "") -> str:
    """Ask in a hint whether the nearest known name was meant, if any is near; the rest of the hint follows."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean {near[0]}? {rest}".rstrip() if near else rest


def require_known(what: str, name: str, known: Sequence[str]) -> None:
    """Require a name to be one of those there are.

    Args:
        what: What it names, for the message: ``preset``.
        name: The name that was given.
        known: Those there are.

    Raises:
        ConfigError: It is none of them; the hint lists them, the nearest first.
    """
    if name not in known:
        raise ConfigError(f"unknown {what} {name!r}", suggest(name, known, f"choose one of {', '.join(known)}"))
