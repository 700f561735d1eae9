"""Every setting of an experiment is a flag: its name, type, default and help are written once."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

import pytest
import typer
from command_line import satdiff, succeed
from typer.testing import CliRunner

from satdiff_cli.commands._settings import accept_settings, describe_fields
from satdiff_cli.config import TrainConfig, dashed


@dataclass(frozen=True)
class Brew:
    """Hold the settings of a brew.

    Attributes:
        leaf: Kind of ``leaf``. More on it here.
        minutes: Time to draw,
            over two lines.
        strength: How strong.
        sweet: Whether sugar goes in.
        spices: What else.
    """

    leaf: str = "green"
    minutes: float = 3.0
    strength: Literal["weak", "strong"] = "weak"
    sweet: bool = False
    spices: tuple[str, ...] = ()


def run(*args: str) -> tuple[int, dict[str, object], str]:
    """Run a verb that takes the settings of a brew and an option of its own."""
    app = typer.Typer(rich_markup_mode=None)
    seen: dict[str, object] = {}

    @app.command()
    @accept_settings(Brew)
    def brew(settings: dict[str, object], *, cups: int = 1) -> None:
        """Brew."""
        seen.update(settings, cups=cups)

    done = CliRunner().invoke(app, list(args))
    return done.exit_code, seen, done.output


def test_only_what_was_given_arrives() -> None:
    assert run()[:2] == (0, {"cups": 1})
    assert run("--leaf", "black", "--cups", "2")[1] == {"leaf": "black", "cups": 2}
    assert run("--minutes", "0")[1] == {"minutes": 0.0, "cups": 1}
    assert run("--sweet")[1] == {"sweet": True, "cups": 1}
    assert run("--no-sweet")[1] == {"sweet": False, "cups": 1}
    assert run("--spices", "Mint, clove,")[1] == {"spices": ("mint", "clove"), "cups": 1}


def test_choices_are_checked_and_shown() -> None:
    code, _, text = run("--strength", "stronk")
    assert code == 2
    assert "strong" in text


def test_the_help_is_the_first_sentence_of_the_docstring_with_the_default() -> None:
    assert describe_fields(Brew)["leaf"] == "Kind of leaf."
    assert describe_fields(Brew)["minutes"] == "Time to draw, over two lines."
    text = " ".join(run("--help")[2].split())
    assert "Kind of leaf. [default: (green)]" in text
    assert "More on it" not in text


def test_every_setting_of_training_has_a_flag_with_help(tmp_path: Path) -> None:
    text = " ".join(succeed("train", "--help", cwd=tmp_path).out.split())
    for field in fields(TrainConfig):
        assert f"--{dashed(field.name)} " in text
        assert describe_fields(TrainConfig)[field.name].endswith(".")


@pytest.mark.parametrize(
    ("flag", "value", "code"), [("--fusion", "absdif", 2), ("--crop", "many", 2), ("--ema", "1.5", 1), ("--crop", 0, 1)]
)
def test_a_wrong_flag_is_refused(project: Path, flag: str, value: object, code: int) -> None:
    outcome = satdiff("train", flag, value, cwd=project)
    assert outcome.code == code
    assert flag in outcome.err or f"is {value}" in outcome.err


def test_settings_can_be_passed_from_python() -> None:
    seen: dict[str, object] = {}

    @accept_settings(Brew)
    def brew(settings: dict[str, object], *, cups: int = 1) -> None:
        """Brew."""
        seen.update(settings, cups=cups)

    brew({"leaf": "white"}, cups=3)
    assert seen == {"leaf": "white", "cups": 3}
