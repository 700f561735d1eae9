"""The ``satdiff`` command: its verbs in pipeline order, and the one place where an error becomes text and exit code."""

import errno
import sys
from typing import Annotated

import typer

from satdiff_cli import __version__
from satdiff_cli.commands import _options as options
from satdiff_cli.commands.demo import demo
from satdiff_cli.commands.detect import detect
from satdiff_cli.commands.ensemble import ensemble
from satdiff_cli.commands.evaluate import evaluate
from satdiff_cli.commands.export import export
from satdiff_cli.commands.fetch import fetch
from satdiff_cli.commands.info import info
from satdiff_cli.commands.pair import pair
from satdiff_cli.commands.predict import predict
from satdiff_cli.commands.runs import runs
from satdiff_cli.commands.submit import submit
from satdiff_cli.commands.sweep import sweep
from satdiff_cli.commands.tile import tile
from satdiff_cli.commands.train import train
from satdiff_cli.errors import SatdiffError

# What a person can mend: a full disk or quota, a read-only or forbidden place, a file size limit.
_OUTPUT_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG}

app = typer.Typer(
    help="Find what changed between two satellite or aerial images of a place.",
    epilog="Start with: satdiff demo",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for verb in (fetch, pair, tile, train, sweep, runs, predict, ensemble, evaluate, submit, export, detect, info, demo):
    app.command()(verb)


def show_version(is_asked: bool) -> None:
    """Print the version and leave."""
    if is_asked:
        sys.stdout.write(f"satdiff {__version__}\n")
        raise typer.Exit


@app.callback()
def satdiff(
    _version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """Find what changed between two satellite or aerial images of a place."""


def main() -> None:
    """Run the command line; a person's mistake ends with a message, a hint and exit code 1."""
    try:
        app()
    except SatdiffError as error:
        fail(error.message, error.hint)
    except OSError as error:
        if error.errno not in _OUTPUT_ERRORS:
            raise
        where = f" {error.filename}" if error.filename else ""
        fail(f"cannot write{where}: {error.strerror}", "free some space or choose another --out; nothing was replaced")
    except (KeyboardInterrupt, SystemExit) as stop:
        if not is_interrupt(stop):
            raise
        fail(
            "stopped from the keyboard; nothing half-written is left in the place of a result",
            "the same command begins again; satdiff predict goes on where it was, and so does satdiff fetch",
        )


def is_interrupt(stop: BaseException) -> bool:
    """Whether this is Ctrl-C, or the exit that Typer makes of it: without a word, with a code of its own."""
    cause = stop.__cause__ or stop.__context__
    return isinstance(stop, KeyboardInterrupt) or (cause is not None and is_interrupt(cause))


def fail(message: str, hint: str) -> None:
    """Print what is wrong and what mends it on stderr, and leave with exit code 1."""
    options.say(f"error  {message}")
    if hint:
        options.say(f"hint   {hint}")
    sys.exit(1)


if __name__ == "__main__":
    main()
