"""Fetch public datasets: what there is, an archive over HTTP that may break off, and its unpacking."""

from satdiff_cli.fetching.datasets import (
    DATASETS,
    Archive,
    FetchError,
    PublicDataset,
    choose_archive,
    find_dataset,
)
from satdiff_cli.fetching.downloading import Patience, ask_server, download, say_bytes
from satdiff_cli.fetching.partial import PartialFile, RemoteFile, hold, partial_file, refuse_existing
from satdiff_cli.fetching.unpacking import check_digest, unpack

__all__ = [
    "DATASETS",
    "Archive",
    "FetchError",
    "PartialFile",
    "Patience",
    "PublicDataset",
    "RemoteFile",
    "ask_server",
    "check_digest",
    "choose_archive",
    "download",
    "find_dataset",
    "hold",
    "partial_file",
    "refuse_existing",
    "say_bytes",
    "unpack",
]
