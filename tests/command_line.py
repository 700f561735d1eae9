"""Run satdiff as a person does, in this process or in one of its own."""

import contextlib
import io
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from satdiff_cli.cli import main


@dataclass(frozen=True)
class Outcome:
    """What a command left behind: its exit code, its results (stdout) and its messages (stderr)."""

    code: int
    out: str
    err: str


def satdiff(*args: object, cwd: Path) -> Outcome:
    """Run a command line in this process; a traceback is a failure of the test."""
    out, err = io.StringIO(), io.StringIO()
    code = 0
    with (
        mock.patch.object(sys, "argv", ["satdiff", *map(str, args)]),
        contextlib.chdir(cwd),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    return Outcome(code, out.getvalue(), err.getvalue())


def succeed(*args: object, cwd: Path) -> Outcome:
    """Run a command line that must end well."""
    outcome = satdiff(*args, cwd=cwd)
    assert outcome.code == 0, outcome.err
    return outcome


def start_satdiff(*args: object, cwd: Path) -> subprocess.Popen[str]:
    """Start a command line in a process of its own, for what only a whole process can show."""
    # A shell makes its background jobs ignore Ctrl-C, and they hand that on.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    return subprocess.Popen(
        [sys.executable, "-m", "satdiff_cli.cli", *map(str, args)],
        cwd=cwd,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish_satdiff(process: subprocess.Popen[str], *, timeout_s: float = 120) -> Outcome:
    """Wait for a started command line."""
    out, err = process.communicate(timeout=timeout_s)
    return Outcome(process.returncode, out, err)


def snapshot(folder: Path) -> dict[str, bytes]:
    """Read every file below a folder, hidden ones too, to see later whether anything was lost or left over."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }
