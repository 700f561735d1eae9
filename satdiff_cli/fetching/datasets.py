"""Public datasets: where each is, on what terms, and what to do by hand where no command can fetch it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from satdiff_cli.errors import ConfigError, SatdiffError, require_known


class FetchError(SatdiffError):
    """A dataset cannot be fetched, or what was fetched cannot be used."""


@dataclass(frozen=True)
class Archive:
    """Say where an archive is, how large it is as far as known, and its SHA-256 (empty where nobody published one)."""

    url: str
    size: str
    sha256: str = ""


@dataclass(frozen=True)
class PublicDataset:
    """Describe a public dataset.

    Attributes:
        name: What a person types.
        page: Its own page.
        licence: Its terms, as far as they are stated.
        size: How much there is.
        format: The ``--format`` of ``satdiff pair`` that reads it.
        by_hand: What to do by hand where no command can fetch it.
        archives: What ``--set`` may name, where a command can.
    """

    name: str
    page: str
    licence: str
    size: str
    format: str
    by_hand: str = ""
    archives: Mapping[str, Archive] = field(default_factory=dict)


DATASETS = (
    PublicDataset(
        "dronedeploy",
        page="https://github.com/dronedeploy/dd-ml-segmentation-benchmark",
        licence="not stated by its publisher: ask before other use than research",
        size="sample: 3 scenes, about 0.5 GB; medium: 55 scenes, about 9 GB",
        format="dronedeploy",
        archives={
            "sample": Archive(
                "https://dl.dropboxusercontent.com/s/h8a8kev0rktf4kq/dataset-sample.tar.gz?dl=0", "about 0.5 GB"
            ),
            "medium": Archive(
                "https://dl.dropboxusercontent.com/s/r0dj9mhyv4bgbme/dataset-medium.tar.gz?dl=0", "about 9 GB"
            ),
        },
    ),
    PublicDataset(
        "LEVIR-CD",
        page="https://justchenhao.github.io/LEVIR/",
        licence="academic use; images of Google Earth",
        size="637 pairs of 1024 × 1024 px",
        format="levir",
        by_hand="Download train.zip, val.zip and test.zip from its page, unpack each into LEVIR-CD/train, val and "
        "test, then: satdiff pair LEVIR-CD --out data",
    ),
    PublicDataset(
        "xBD",
        page="https://xview2.org/",
        licence="CC BY-NC-SA 4.0, and the terms that an account agrees to",
        size="challenge sets: train about 7.8 GB, test about 2.6 GB",
        format="csv",
        by_hand="Register on its page, agree to the terms and download the challenge sets; write a table with the "
        "columns before, after and label (…_pre_disaster.png, …_post_disaster.png, and a mask of 0/1 made of their "
        "targets), then: satdiff pair table.csv --out data",
    ),
    PublicDataset(
        "OSCD",
        page="https://rcdaudt.github.io/oscd/",
        licence="labels CC BY-NC-SA 4.0; images are modified Copernicus Sentinel data",
        size="24 pairs of 13 bands, about 0.5 GB",
        format="csv",
        by_hand="Follow its page to IEEE DataPort (a free account), unpack images and labels, write a table with the "
        "columns before, after, label and site, the files of a date joined by ';', then: satdiff pair table.csv "
        "--out data",
    ),
)


def find_dataset(name: str) -> PublicDataset:
    """Find a dataset by its name in any case.

    Raises:
        ConfigError: There is none of this name.
        FetchError: It has to be fetched by hand; the hint says how.
    """
    names = {item.name.casefold(): item.name for item in DATASETS}
    spelled = names.get(name.casefold(), name)
    require_known("dataset", spelled, list(names.values()))
    found = next(item for item in DATASETS if item.name == spelled)
    if not found.archives:
        raise FetchError(f"no command can fetch {found.name}: {found.page} has it", found.by_hand)
    return found


def choose_archive(dataset: PublicDataset, set_name: str, *, url: str | None, sha256: str | None) -> Archive:
    """Choose the archive of a set; an address given by a person replaces the known one, a checksum as well.

    Raises:
        ConfigError: There is no such set, or the address or the checksum is none.
    """
    require_known("set", set_name, list(dataset.archives))
    known = dataset.archives[set_name]
    if url and not re.match(r"https?://[^/]", url, re.IGNORECASE):
        raise ConfigError(f"--url {url} is no web address", "one starts with https:// or http://")
    digest = (sha256 or ("" if url else known.sha256)).lower()
    if digest and not re.fullmatch(r"[0-9a-f]{64}", digest):
        raise ConfigError(f"--sha256 {sha256} is no SHA-256", "one has 64 digits 0-9, a-f; sha256sum FILE prints it")
    return Archive(url, "unknown", digest) if url else Archive(known.url, known.size, digest)
