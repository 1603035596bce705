"""Generate command-line options from a signature: one for each argument that a command line can express."""

from __future__ import annotations

import dataclasses
import inspect
import re
import types
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import click

from .._utils.checks import listed
from .._utils.errors import UserTypeError

SHORT = {"n_topics": "-k"}
SKIPPED = {"copy", "init"}
PATH = click.Path(path_type=Path)


def options(function: Callable[..., Any]) -> list[click.Option]:
    """Make an option of every argument that a command line can express; an AnnData is given as a file name.

    The first argument (the input file), `copy`, `init` and arguments that can only be arrays are left out.
    """
    from .. import tl
    from ..tl._run import RunOptions, hints, options_of

    group, kinds = options_of(function), hints(function)
    own = {
        name: parameter.default
        for name, parameter in list(inspect.signature(function).parameters.items())[1:]
        if parameter.kind is not parameter.VAR_KEYWORD and name not in SKIPPED
    }
    # a TypedDict declares only what it adds to the options of every fit
    texts = _texts(RunOptions) | _texts(group) | _texts(function)
    for name, text in texts.items():
        if other := re.match(r"As in (?:get\.|tl\.)?(\w+)", text):  # say it here
            texts[name] = _texts(getattr(tl, other[1])).get(name, text)
    made = [_option(name, kinds[name], default=default, text=texts[name]) for name, default in own.items()]
    fields = typing.get_type_hints(group) if group else {}
    made += [_option(name, kind, text=texts[name]) for name, kind in fields.items()]
    return [option for option in made if option is not None]


def _option(name: str, hint: Any, *, text: str, default: Any = None) -> click.Option | None:
    members, flag = _members(hint), "--" + name.replace("_", "-")
    more: dict[str, Any] = {"help": text, "default": default, "show_default": default is not None}
    if required := default is inspect.Parameter.empty:
        more = {"help": text, "required": True}
    if any(getattr(member, "__name__", "") == "AnnData" for member in members):
        return click.Option([flag], type=PATH, metavar="FILE.h5ad", **more)
    if bool in members:
        return click.Option([f"{flag}/--no-{flag[2:]}"], **more)
    if any(getattr(member, "__name__", "") == "Likelihood" for member in members):
        words = [w for m in members if typing.get_origin(m) is Literal for w in typing.get_args(m)]
        return click.Option([flag], type=likelihood, metavar="|".join(words) + "[:PARAMETER=NUMBER,...]", **more)
    several = [x for m in members if typing.get_origin(m) is Sequence for x in _members(typing.get_args(m)[0])]
    inner = members + several
    kinds: list[type] = [kind for kind in (int, float, str) if kind in inner]
    words = [] if str in kinds else [w for m in inner if typing.get_origin(m) is Literal for w in typing.get_args(m)]
    if not kinds and not words:
        if required:
            msg = f"No option can hold the argument {name!r} of type {hint}."
            raise UserTypeError(msg)
        return None
    none = ["none"] if types.NoneType in members and default is not None and not required else []
    metavar = "|".join([*words, *none, *dict.fromkeys("TEXT" if kind is str else "NUMBER" for kind in kinds)])
    if several:
        mapping = any(typing.get_origin(member) is Mapping for member in members)
        scalar = not set(kinds).isdisjoint(members)
        metavar += "[=NUMBER]" if mapping else ""

        def read(_: Any, __: Any, given: Sequence[Any]) -> Any:
            return collect(given, mapping=mapping, scalar=scalar) if given else default

        more |= {"multiple": True, "callback": read}
        more["help"] += " Repeat the option for several."
    names = [flag, SHORT[name]] if name in SHORT else [flag]
    return click.Option(names, type=_reader(kinds, words, none=bool(none)), metavar=metavar, **more)


def _reader(kinds: Sequence[type], words: Sequence[str], *, none: bool) -> Callable[[Any], Any]:
    def value(text: Any) -> Any:
        """Parse the text as an allowed word, `None`, or the first kind that accepts it."""
        if text in words:
            return text
        if none and str(text).lower() == "none":
            return None
        for kind in kinds:
            try:
                return kind(text)
            except ValueError:
                continue
        rule = ["a whole number" if kinds == [int] else "a number"] if kinds else []
        msg = f"must be {' or '.join([*map(repr, words), *rule])}, got {text!r}."
        raise click.BadParameter(msg)

    return value


def likelihood(text: str) -> Any:
    """Parse a likelihood given as ``NAME`` or ``NAME:PARAMETER=NUMBER,...``."""
    from ..engine import as_likelihood

    name, _, rest = text.partition(":")
    given = dict(pair.partition("=")[::2] for pair in rest.split(",") if pair)
    try:
        named = as_likelihood(name)
        own = [each.name for each in dataclasses.fields(named)]
        if unknown := [parameter for parameter in given if parameter not in own]:
            msg = f"must name parameters of {name!r} ({listed(own)}), got {listed(unknown)}."
            raise click.BadParameter(msg)
        return dataclasses.replace(named, **{parameter: float(value) for parameter, value in given.items()})
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


def collect(given: Sequence[Any], *, mapping: bool, scalar: bool) -> Any:
    """Return the value of a repeated option: `None`, one value, a list, or for ``NAME=NUMBER`` a mapping."""
    pairs = [re.fullmatch(r"(.+)=([-+]?[\d.]+(?:[eE][-+]?\d+)?)", value) for value in given] if mapping else []
    if any(pairs):
        return Numbered(given, {pair[1]: float(pair[2]) for pair in pairs if pair})
    return given[0] if scalar and len(given) == 1 else list(given) or None


class Numbered(dict[str, float]):
    """Names with numbers, ``NAME=NUMBER``, unless what was written turns out to be names as it stands."""

    def __init__(self, written: Sequence[str], numbers: Mapping[str, float]) -> None:
        super().__init__(numbers)
        self.written = list(written)

    def among(self, names: Collection[str]) -> Any:
        """Return the mapping, or what was written if all of it is among the names that there are."""
        if set(self.written) <= set(names):
            return self.written
        if len(self) < len(self.written):
            msg = f"All or none must be NAME=NUMBER, each name once, got {', '.join(map(repr, self.written))}."
            raise click.BadParameter(msg)
        return dict(self)


def _members(hint: Any) -> list[Any]:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return [member for part in typing.get_args(hint) for member in _members(part)]
    return [hint]


def _texts(documented: Any) -> dict[str, str]:
    """Return the description of each parameter in a numpydoc docstring."""
    section = inspect.cleandoc(documented.__doc__ or "").partition("Parameters\n----------\n")[2]
    texts: dict[str, str] = {}
    names: list[str] = []
    for line in re.split(r"\n\S.*\n-{3,}\n", section)[0].splitlines():
        if line[:1].strip():
            names = [name.strip(" *") for name in line.partition(":")[0].split(",")]
        else:
            texts |= {name: f"{texts.get(name, '')} {line.strip()}".strip() for name in names}
    return {name: _plain(text) for name, text in texts.items()}


def _plain(text: str) -> str:
    return re.sub(r"(?::\w+:)?`+([^`]*)`+", r"\1", re.sub(r" ?:cite:\w+:`\w+`", "", text))
