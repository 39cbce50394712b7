"""The command lines: from a table of options, by their groups, to a parser and the values that were given."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from option import GROUPS, OPTIONS, RECIPES, InputError, Option

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
                group.add_argument(name, **self._settings(option, only_given))

    def error(self, message: str):
        self.exit(2, f"{self.prog}: {message} (see --help)\n")

    def _checked(self, option: Option, text: str) -> int | float:
        if option.type is int:
            option = replace(option, low=option.low or 0)
        try:
            return option.check(text, "--")
        except InputError as error:
            self.error(str(error))

    def _settings(self, option: Option, only_given: bool) -> dict[str, Any]:
        """The keyword arguments of argparse's `add_argument`: type, choices and default only unless `only_given`."""
        settings: dict[str, Any] = {} if only_given else {"default": copy(option.default)}
        if option.type is bool:
            return settings | {"action": "store_true", "help": option.help}
        metavar = option.metavar or METAVARS.get(option.type, "X")
        settings["metavar"] = "{" + ",".join(option.choices) + "}" if option.choices else metavar
        settings["help"] = option.help + _shown_default(option)
        if only_given:
            return settings
        settings["type"] = partial(self._checked, option) if option.type in (int, float) else option.type
        settings["choices"] = option.choices if option.beginning is None else None
        if option.nargs:
            settings |= {"action": "append"} if option.nargs == "append" else {"nargs": option.nargs}
        return settings | ({} if option.positional else {"required": option.required})


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
