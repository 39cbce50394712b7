"""The command lines: from a table of options, by their groups, to a parser and the values that were given."""

from __future__ import annotations

import argparse
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from copy import copy
from pathlib import Path
from typing import Any

from option import GROUPS, OPTIONS, RECIPES, Option

Table = Mapping[str, Sequence[Option]]  # the rows by the title of their group; "": those that need none

METAVARS = {int: "N", float: "X", str: "WORD", Path: "FILE"}


class Parser(argparse.ArgumentParser):
    """A parser of the options of `table`. An error is one line and exit status 2.

    only_given: return only the options that are given, as text, for `Option.check`.
    """

    def __init__(self, table: Table | None = None, only_given: bool = False, **settings):
        super().__init__(allow_abbrev=False, argument_default=argparse.SUPPRESS, **settings)
        for title, options in (table or {}).items():
            group = self.add_argument_group(title) if title else self
            for option in options:
                name = option.name if option.positional else f"--{option.name}"
                group.add_argument(name, **_words(option, only_given))

    def error(self, message: str):
        self.exit(2, f"{self.prog}: {message} (see --help)\n")


def with_commands(prog: str, description: str, commands: Mapping[str, tuple[str, Table]]) -> Parser:
    """A parser of subcommands, each with its help and its table; `command` is the chosen one."""
    parser = Parser(prog=prog, description=description)
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    for name, (help_, table) in commands.items():
        subparsers.add_parser(name, table=table, help=help_, description=f"{help_[0].upper()}{help_[1:]}.")
    return parser


def parse_options(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """The options of main_nni.py that are given, each checked. Raises InputError; exits with status 2 for an unknown option."""
    about = "Train and evaluate EAT for image aesthetics assessment. Without options: the demo."
    usage = "main_nni.py [OPTION ...]"
    given = vars(Parser(GROUPS, True, prog="main_nni.py", usage=usage, description=about).parse_args(argv))
    return {name: OPTIONS[name].check(value, "--") for name, value in given.items()}


def _words(option: Option, only_given: bool) -> dict[str, Any]:
    """The arguments of argparse's `add_argument`; type, choices and default only unless `only_given`."""
    words: dict[str, Any] = {} if only_given else {"default": copy(option.default)}
    if option.type is bool:
        return words | {"action": "store_true", "help": option.help}
    metavar = option.metavar or METAVARS.get(option.type, "X")
    words["metavar"] = "{" + ",".join(option.choices) + "}" if option.choices else metavar
    words["help"] = option.help + _shown_default(option)
    if only_given:
        return words
    words["type"] = {int: whole(option.low or 0, option.high), float: finite}.get(option.type, option.type)
    words["choices"] = option.choices if option.beginning is None else None
    if option.nargs:
        words |= {"action": "append"} if option.nargs == "append" else {"nargs": option.nargs}
    return words | ({} if option.positional else {"required": option.required})


def whole(low: float, high: float | None = None) -> Callable[[str], int]:
    """For argparse's `type`: a whole number of at least `low`, or from `low` to `high`."""

    def check(text: str) -> int:
        least = low if high is None else 0
        if not (text.isascii() and text.isdigit() and least <= int(text) < 2**32):
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of {least} or more")
        if high is not None and not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f"{text} must lie between {low} and {high}")
        return int(text)

    return check


def finite(text: str) -> float:
    """For argparse's `type`: a finite number."""
    with suppress(ValueError):
        if math.isfinite(value := float(text)):
            return value
    raise argparse.ArgumentTypeError(f"{text!r} is not a finite number")


def _shown_default(option: Option) -> str:
    if "(default: " in option.help or option.default in ("", []):
        return ""
    if option.default is not None:
        return f" (default: {option.default})"
    values = {name: recipe.get(option.name) for name, recipe in RECIPES.items()}
    if OPTIONS.get(option.name) is not option or not any(value is not None for value in values.values()):
        return ""
    usual = Counter(values.values()).most_common(1)[0][0]
    others = [f"{n}: {v}" for n, v in values.items() if v not in (usual, None)]
    return f" (default: {', '.join([str(usual)] * (usual is not None) + others)})"
