"""``satdiff predict``: what it refuses before anything is computed."""

import shutil
from pathlib import Path
from unittest import mock

import pytest
from command_line import satdiff, succeed
from conftest import LABELLED, RUN, TEST, pair_id

from satdiff_cli import inference


@pytest.mark.parametrize(
    ("options", "named", "needed"),
    [
        (("--cascade-factor", 3), "--cascade-factor", "add --cascade"),
        (("--cascade-weight", 0.5, "--finest", 1), "--cascade-weight, --finest", "add --cascade"),
        (("--cascade-soft", "--coarsest", 0), "--cascade-soft, --coarsest", "add --cascade"),
        (("--address", "head:6379"), "--address", "add --engine ray"),
        (("--gpus-per-worker", 0.5, "--cascade", "--finest", 0), "--gpus-per-worker", "add --engine ray"),
    ],
)
def test_options_that_would_do_nothing_are_refused(
    tmp_path: Path, options: tuple[object, ...], named: str, needed: str
) -> None:
    outcome = satdiff("predict", RUN, *options, cwd=tmp_path)
    assert outcome.code == 1
    assert f"error  {named} would do nothing" in outcome.err
    assert f"hint   {needed}" in outcome.err


def test_bands_of_all_scenes_are_checked_before_anything_is_computed(project: Path, project_root: Path) -> None:
    succeed("pair", "data", "--bands", "nir,red,green,blue", "--overwrite", cwd=project)
    names = [f"{pair_id(number)}.tif" for number in range(LABELLED + TEST)]
    *right, wrong = sorted(names)
    for name in right:
        shutil.copy(project_root / "data" / "composites" / name, project / "data" / "composites")
    command = ("predict", RUN, "--scenes", "all", "--device", "cpu", "--out", "p")
    for options in ((), ("--dry-run",)):
        with mock.patch.object(inference.Predictor, "predict", side_effect=AssertionError):
            outcome = satdiff(*command, *options, cwd=project)
        assert outcome.code == 1
        assert wrong in outcome.err
        assert "nir, red, green, blue" in outcome.err
        assert "--bands red,green,blue,nir" in outcome.err
        assert not list(project.glob("*p*.partial"))


def test_ctrl_c_says_that_the_same_command_goes_on(project: Path) -> None:
    with mock.patch.object(inference, "run_plan", side_effect=KeyboardInterrupt):
        outcome = satdiff("predict", RUN, "--device", "cpu", "--out", "p", cwd=project)
    assert outcome.code == 1
    assert "satdiff predict goes on where it was" in outcome.err
