"""Every setting is a flag of the command line with its help, type and default, all from one place."""

import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import pytest
import typer
from command_line import succeed
from typer.testing import CliRunner

from satdiff_cli.cli import app
from satdiff_cli.commands._settings import accept_settings, describe_fields, split_list
from satdiff_cli.commands.train import train
from satdiff_cli.config import TrainConfig, dashed

OWN = [field.name for field in fields(TrainConfig)]


@pytest.fixture(scope="module")
def options() -> dict[str, Any]:
    """The options of satdiff train by parameter name."""
    command: Any = typer.main.get_command(app)
    return {parameter.name: parameter for parameter in command.commands["train"].params}


@pytest.mark.parametrize("name", OWN)
def test_every_setting_is_a_flag_with_the_help_of_its_docstring(options: dict[str, Any], name: str) -> None:
    option = options[f"setting_{name}"]
    assert option.opts == [f"--{dashed(name)}"]
    entry = re.search(
        rf"^    {name}: (.+?)(?=^    \w+: |\Z)", inspect.getdoc(TrainConfig) or "", re.DOTALL | re.MULTILINE
    )
    assert entry
    text = " ".join(entry[1].replace("``", "").split())
    assert text.startswith(option.help)
    assert option.help.endswith(".")
    assert 10 < len(option.help) < 260
    assert option.default is None, "what is not given must not win over a file"


def test_only_switches_have_a_counterpart(options: dict[str, Any]) -> None:
    for name in OWN:
        is_switch = isinstance(getattr(TrainConfig(), name), bool)
        assert options[f"setting_{name}"].secondary_opts == ([f"--no-{dashed(name)}"] if is_switch else [])


def test_no_setting_hides_an_option_of_the_verb(options: dict[str, Any]) -> None:
    flags = [flag for option in options.values() for flag in [*option.opts, *option.secondary_opts]]
    assert len(flags) == len(set(flags))


def test_help_shows_every_flag_and_default(tmp_path: Path) -> None:
    text = " ".join(succeed("train", "--help", cwd=tmp_path).out.split())
    for name, default in TrainConfig().as_dict().items():
        assert f"--{dashed(name)}" in text
        if default not in ("", [], False):
            assert f"[default:({default})]" in text.replace(" ", ""), name
    assert "--no-swap-dates" in text
    for choice in ("adam|adamw|sgd", "exponential|onecycle|cosine", "none|light|standard|strong"):
        assert choice in text


@pytest.mark.parametrize(
    ("text", "names"),
    [("red,nir", ("red", "nir")), (" Red , NIR,", ("red", "nir")), ("swir1", ("swir1",)), ("", ())],
)
def test_lists_are_split_at_commas(text: str, names: tuple[str, ...]) -> None:
    assert split_list(text) == names


@dataclass(frozen=True)
class Kitchen:
    """Hold settings of a kitchen.

    Attributes:
        dish: What is cooked. Not shown.
        spices: What goes in,
            over two lines with ``code``.
        is_hot: Whether it is hot.
        heat: How hot.
        how: Way of cooking.
    """

    dish: str = "soup"
    spices: tuple[str, ...] = ("salt", "pepper")
    is_hot: bool = True
    heat: float = 1.5
    how: Literal["fry", "boil"] = "boil"


CALLS: list[tuple[dict[str, Any], int]] = []


@accept_settings(Kitchen)
def cook(settings: Mapping[str, Any], *, plates: int = 1) -> None:
    """Cook."""
    CALLS.append((dict(settings), plates))


def call(*args: str) -> tuple[dict[str, Any], int]:
    kitchen = typer.Typer()
    kitchen.command()(cook)
    result = CliRunner().invoke(kitchen, args)
    assert result.exit_code == 0, result.output
    return CALLS.pop()


def test_a_verb_gets_the_settings_that_are_given_and_its_own_options() -> None:
    assert call() == ({}, 1)
    assert call("--dish", "stew", "--plates", "3") == ({"dish": "stew"}, 3)
    assert call("--spices", "Salt, thyme") == ({"spices": ("salt", "thyme")}, 1)
    assert call("--no-is-hot", "--heat", "0") == ({"is_hot": False, "heat": 0.0}, 1)
    assert call("--is-hot", "--how", "fry") == ({"is_hot": True, "how": "fry"}, 1)
    assert call("--spices", "") == ({"spices": ()}, 1)


@pytest.mark.parametrize("args", [("--how", "bake"), ("--heat", "much"), ("--oven", "1")])
def test_what_no_setting_takes_is_wrong_usage(args: tuple[str, ...]) -> None:
    kitchen = typer.Typer()
    kitchen.command()(cook)
    assert CliRunner().invoke(kitchen, args).exit_code == 2
    assert not CALLS


def test_the_help_is_the_first_sentence_on_a_field() -> None:
    found = describe_fields(Kitchen)
    assert found["dish"] == "What is cooked."
    assert found["spices"] == "What goes in, over two lines with code."
    assert list(found) == [field.name for field in fields(Kitchen)]


def test_a_verb_can_be_called_from_python_with_its_settings() -> None:
    cook({"dish": "stew", "heat": 2.0}, plates=2)
    assert CALLS.pop() == ({"dish": "stew", "heat": 2.0}, 2)
    cook()
    assert CALLS.pop() == ({}, 1)


def test_a_training_can_be_started_from_python(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    settings = {"arch": "fcsiam", "crop": 48, "batch_size": 2, "steps": 1, "epochs": 1, "use_bands": ("red",)}
    train(settings, name="own", device="cpu")
    assert "epochs = 1" in (project / "models" / "saved" / "own" / "config.toml").read_text()
    assert 'use_bands = [\n    "red",\n]' in (project / "models" / "saved" / "own" / "config.toml").read_text()
