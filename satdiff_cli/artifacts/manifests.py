"""What a folder is and what it was made from; JSON, which is what that is written in."""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from satdiff_cli import __version__
from satdiff_cli.artifacts.names import MAKERS, MANIFEST_NAME, SCHEMA_VERSION, Kind
from satdiff_cli.artifacts.writing import write_file
from satdiff_cli.errors import ArtifactError


@dataclass(frozen=True)
class Manifest:
    """Say what a folder artifact is and what it was made from.

    Attributes:
        kind: What the folder is.
        config: The resolved settings of the step.
        inputs: Size and hash of each file that the step read.
        seed: Seed of the step, if it drew random numbers.
        details: Facts about the result that ``satdiff info`` shows.
    """

    kind: Kind
    config: Mapping[str, Any] = field(default_factory=dict)
    inputs: Sequence[Mapping[str, Any]] = ()
    seed: int | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION
    satdiff_version: str = __version__
    created: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))


def describe_inputs(paths: Iterable[Path], root: Path) -> list[dict[str, Any]]:
    """Describe files by path (relative to ``root`` where they lie below it), size [bytes] and SHA-256."""
    described = []
    for path in paths:
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        described.append({"path": relative_path(path, root), "size": path.stat().st_size, "sha256": digest})
    return described


def relative_path(path: Path, root: Path) -> str:
    """Spell a path relative to ``root`` with forward slashes where it lies below it, else as an absolute path."""
    try:
        return path.resolve().relative_to(root.resolve()).as_posix()
    except ValueError:
        return path.absolute().as_posix() if path.exists() else path.as_posix()


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write ``manifest.json`` into a folder."""
    write_json(folder / MANIFEST_NAME, asdict(manifest))


def read_manifest(folder: Path, kind: Kind) -> Manifest:
    """Read the manifest of a folder artifact.

    Raises:
        ArtifactError: The folder is missing, is no artifact, is of another kind or of a newer schema.
    """
    hint = f"make it with: {MAKERS[kind]}"
    path = folder / MANIFEST_NAME
    if not folder.is_dir():
        raise ArtifactError(f"{folder} does not exist, expected a folder of kind {kind}", hint)
    if not path.is_file():
        raise ArtifactError(f"{folder} has no {MANIFEST_NAME}, expected a folder of kind {kind}", hint)
    try:
        manifest = Manifest(**read_json(path))
    except TypeError as error:
        raise ArtifactError(f"{path} is damaged: {error}", hint) from error
    if manifest.kind != kind:
        raise ArtifactError(f"{folder} is of kind {manifest.kind}, expected {kind}", hint)
    if manifest.schema_version > SCHEMA_VERSION:
        raise ArtifactError(
            f"{folder} was written by satdiff {manifest.satdiff_version}, this is {__version__}", "update satdiff"
        )
    return manifest


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, atomically; NaN becomes null."""
    with write_file(path) as temporary:
        temporary.write_text(format_json(value) + "\n", encoding="utf-8")


def format_json(value: Any) -> str:
    """Format a value as indented JSON; NaN becomes null."""
    return json.dumps(replace_nan(value), indent=2, ensure_ascii=False, default=str)


def replace_nan(value: Any) -> Any:
    """Replace NaN, which JSON does not know, by None in nested dicts and lists."""
    if isinstance(value, float) and math.isnan(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): replace_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [replace_nan(item) for item in value]
    return value


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ArtifactError: The file is damaged.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise ArtifactError(f"{path} holds {type(value).__name__}, expected an object")
    return value
