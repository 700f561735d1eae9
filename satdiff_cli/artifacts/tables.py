"""Tables and keys that the steps hand on."""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from satdiff_cli.artifacts.names import MAKERS
from satdiff_cli.artifacts.writing import write_file
from satdiff_cli.errors import ArtifactError, KeyMismatchError

if TYPE_CHECKING:
    import pandas as pd


def read_table(path: Path, columns: Sequence[str]) -> "pd.DataFrame":
    """Read a CSV of the contract with every cell as text; empty cells are empty strings.

    Raises:
        ArtifactError: The file is missing or lacks one of the columns.
    """
    import pandas as pd

    maker = MAKERS.get(path.name, "")
    hint = f"make it with: {maker}" if maker else "check the path"
    if not path.is_file():
        raise ArtifactError(f"{path} does not exist", hint)
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (ValueError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path} is no table: {error}", hint) from error
    missing = [column for column in columns if column not in table.columns]
    if missing:
        raise ArtifactError(f"{path} has the columns {', '.join(table.columns)} and lacks {', '.join(missing)}", hint)
    return table


def write_table(path: Path, table: "pd.DataFrame", *, overwrite: bool = True) -> None:
    """Write a CSV atomically."""
    with write_file(path, overwrite=overwrite) as temporary:
        table.to_csv(temporary, index=False)


def read_sample_ids(path: Path) -> list[str]:
    """Read the ids of a sample submission, in its order.

    Raises:
        ArtifactError: The file is missing, has no column ``Id``, or repeats an id.
    """
    table = read_table(path, ("Id",))
    ids: list[str] = table["Id"].str.strip().tolist()
    repeated = sorted(item for item, count in Counter(ids).items() if count > 1)
    if repeated:
        raise ArtifactError(f"{path} repeats the ids {list_some(repeated)}")
    return ids


def check_keys(found: Iterable[str], expected: Iterable[str], *, what: str, hint: str = "") -> None:
    """Require two artifacts that are joined to hold the same ids.

    Raises:
        KeyMismatchError: Ids are missing or surplus; the message lists them.
    """
    found_ids, expected_ids = set(found), set(expected)
    parts = []
    if expected_ids - found_ids:
        parts.append(f"missing {list_some(sorted(expected_ids - found_ids))}")
    if found_ids - expected_ids:
        parts.append(f"surplus {list_some(sorted(found_ids - expected_ids))}")
    if parts:
        raise KeyMismatchError(f"{what}: {'; '.join(parts)}", hint)


def list_some(items: Sequence[str], most: int = 20) -> str:
    """Join names for a message; beyond ``most`` only their number is given."""
    shown = ", ".join(items[:most])
    return shown if len(items) <= most else f"{shown} and {len(items) - most} more"
