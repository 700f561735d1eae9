"""Give a verb one flag for each setting of an experiment: its name, type, default and help stand in the settings."""

import functools
import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import fields
from types import GenericAlias
from typing import Annotated, Any, get_origin, get_type_hints

import typer

from satdiff_cli.config import dashed


def accept_settings(kind: type) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Replace the first parameter of a verb, a mapping of settings, by a flag for each field of a settings class.

    The verb gets those that were given on the command line.

    Args:
        kind: The dataclass; the help of a flag is the first sentence of the field in its docstring.
    """

    def decorate(verb: Callable[..., None]) -> Callable[..., None]:
        names = [field.name for field in fields(kind)]

        @functools.wraps(verb)
        def accept(settings: Mapping[str, Any] | None = None, **values: Any) -> None:
            flags = {name: values.pop(f"setting_{name}", None) for name in names}
            given = {name: value for name, value in flags.items() if value is not None}
            verb({**(settings or {}), **given}, **values)

        own = list(inspect.signature(verb, eval_str=True).parameters.values())[1:]
        accept.__signature__ = inspect.Signature([*declare_flags(kind), *own])  # type: ignore[attr-defined]
        accept.__annotations__ = {name: item.annotation for name, item in accept.__signature__.parameters.items()}  # type: ignore[attr-defined]
        del accept.__wrapped__  # typer would look behind it
        return accept

    return decorate


def declare_flags(kind: type) -> list[inspect.Parameter]:
    """Declare an option for each field of a settings class, absent unless given."""
    helps, hints = describe_fields(kind), get_type_hints(kind)
    parameters = []
    for field in fields(kind):
        name, hint = field.name, hints[field.name]
        is_list = get_origin(hint) is tuple or isinstance(hint, GenericAlias)
        default: Any = ",".join(getattr(kind, name)) if is_list else field.default
        flag = f"--{dashed(name)}" + (f"/--no-{dashed(name)}" if hint is bool else "")
        option = typer.Option(
            flag,
            help=helps[name],
            show_default=str(default) if default not in ("", False) else False,
            parser=split_list if is_list else None,
            metavar="<names>" if is_list else None,
        )
        annotation = Annotated[(Any if is_list else hint) | None, option]  # type: ignore[valid-type]
        parameters.append(
            inspect.Parameter(f"setting_{name}", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
        )
    return parameters


def describe_fields(kind: type) -> Mapping[str, str]:
    """Read the first sentence on each field of a settings class from its docstring, as plain text."""
    text = inspect.getdoc(kind) or ""
    entries = re.findall(r"^    (\w+): (.*(?:\n        .*)*)", text, re.MULTILINE)
    return {name: re.split(r"(?<=\.) ", " ".join(entry.replace("``", "").split()))[0] for name, entry in entries}


def split_list(text: str) -> tuple[str, ...]:
    """Read names with commas between them."""
    return tuple(item.strip().lower() for item in text.split(",") if item.strip())
