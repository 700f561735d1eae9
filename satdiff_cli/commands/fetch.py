"""``satdiff fetch``: get a public dataset."""

from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from satdiff_cli.commands import _options as options

if TYPE_CHECKING:
    from satdiff_cli.fetching import Archive, PartialFile, Patience, PublicDataset

MEGABYTE = 1_000_000


def fetch(
    name: Annotated[str | None, typer.Argument(help="Dataset to fetch.", show_default=False)] = None,
    list_all: Annotated[bool, typer.Option("--list", help="List the datasets, their pages and terms.")] = False,
    set_name: Annotated[
        str, typer.Option("--set", help="Which part of it: for dronedeploy sample or medium.")
    ] = "sample",
    out: Annotated[
        Path, typer.Option("--out", help="Folder that the dataset's own folder goes into.")
    ] = options.DEFAULT_DATA,
    url: Annotated[
        str | None, typer.Option("--url", help="Another address of the archive.", show_default="the publisher's")
    ] = None,
    sha256: Annotated[
        str | None, typer.Option("--sha256", help="SHA-256 that the archive must have.", show_default=False)
    ] = None,
    retries: Annotated[int, typer.Option("--retries", min=0, help="Tries after one that got no further.")] = 5,
    dry_run: options.DryRunOption = False,
    as_json: options.JsonOption = False,
) -> None:
    """Fetch a public dataset and unpack it.

    Reads an archive over HTTP; writes OUT/dataset-SET. Stopped or broken off, the same command goes on where it was.

    Example: satdiff fetch dronedeploy --set sample

    Next: satdiff pair data/dataset-sample --out data
    """
    from satdiff_cli import fetching
    from satdiff_cli.errors import ConfigError

    if list_all:
        list_datasets(as_json=as_json)
        return
    if name is None:
        raise ConfigError("which dataset?", "satdiff fetch --list lists them; satdiff fetch dronedeploy gets one")
    dataset = fetching.find_dataset(name)
    archive = fetching.choose_archive(dataset, set_name, url=url, sha256=sha256)
    target = out / f"dataset-{set_name}"
    fetching.refuse_existing(target)
    partial = fetching.partial_file(target)
    patience = fetching.Patience(retries, say=lambda text: options.say(f"       {text}"))
    size = announce(archive, partial, patience)
    if dry_run:
        return
    with fetching.hold(partial, target):
        record: dict[str, Any] = {"dataset": dataset.name, "set": set_name, "url": archive.url}
        summary = get(archive, partial, target, record=record, size=size, patience=patience)
    options.say(f"got    {summary['files']} files; licence: {dataset.licence}")
    next_command = f"satdiff pair {target} --out {out}"
    options.finish(summary, path=target, next_command=next_command, as_json=as_json)


def announce(archive: "Archive", partial: "PartialFile", patience: "Patience") -> int | None:
    """Say how large the archive is and how much of it is here already.

    Returns:
        Its size [bytes], None where the server does not say.
    """
    from satdiff_cli import fetching

    if partial.is_whole(archive.url):
        options.say(f"size   {fetching.say_bytes(partial.size)}, all of it here already ({archive.url})")
        return partial.size
    size = fetching.ask_server(archive.url, patience).size
    here = f"; {fetching.say_bytes(partial.size)} here already" if partial.find_rest(archive.url) else ""
    options.say(f"size   {fetching.say_bytes(size)}{here} ({archive.url})")
    return size


def get(
    archive: "Archive",
    partial: "PartialFile",
    target: Path,
    *,
    record: dict[str, Any],
    size: int | None,
    patience: "Patience",
) -> dict[str, Any]:
    """Download an archive, check it, unpack it, and remove it.

    Returns:
        What was fetched, for ``--json``.
    """
    from satdiff_cli import fetching

    total = None if size is None else size // MEGABYTE
    with options.progress_bar("fetching", total) as bar:
        fetching.download(
            archive.url,
            partial,
            patience,
            on_bytes=lambda done: bar.show(done // MEGABYTE, (size or done) // MEGABYTE, "MB"),
        )
    bytes_here = partial.size
    digest = fetching.check_digest(partial.path, archive.sha256)
    verdict = "as expected" if archive.sha256 else "checked against nothing: none is known; --sha256 pins it"
    options.say(f"sha256 {digest} ({verdict})")
    record |= {"bytes": bytes_here, "sha256": digest, "fetched": datetime.now(UTC).isoformat(timespec="seconds")}
    with options.progress_bar("unpacking", bytes_here // MEGABYTE) as bar:
        files = fetching.unpack(
            partial.path,
            target,
            record,
            on_bytes=lambda done: bar.show(done // MEGABYTE, bytes_here // MEGABYTE, "MB"),
        )
    partial.remove()
    return {**record, "files": files, "path": str(target)}


def list_datasets(*, as_json: bool) -> None:
    """Print what there is: where, on what terms, and how to get it."""
    from satdiff_cli import fetching

    if as_json:
        options.finish(
            {"datasets": [asdict(item) for item in fetching.DATASETS]}, path=None, next_command="", as_json=True
        )
        return
    options.show("\n\n".join(map(describe_dataset, fetching.DATASETS)))


def describe_dataset(dataset: "PublicDataset") -> str:
    """Describe a dataset in lines."""
    how = dataset.by_hand or f"satdiff fetch {dataset.name} --set {'|'.join(dataset.archives)}"
    lines = {
        "page": dataset.page,
        "licence": dataset.licence,
        "size": dataset.size,
        "read": f"satdiff pair --format {dataset.format}",
        "by hand" if dataset.by_hand else "get": how,
    }
    return "\n".join([dataset.name, *(f"  {label:<8} {text}" for label, text in lines.items())])
