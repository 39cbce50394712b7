"""Command lines: parsers made of tables of options."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from copy import copy
from functools import partial
from pathlib import Path
from typing import Any

from iaa.errors import InputError
from iaa.runtime.program import printable
from iaa.suggestions import DASHES, suggest
from option import GROUPS, OPTIONS, RECIPES, Option

Table = Mapping[str, Sequence[Option]]  # the rows by the title of their group; "": no title

METAVARS = {int: "N", float: "X", str: "WORD", Path: "FILE"}


class Parser(argparse.ArgumentParser):
    """A parser of the options of `table`. Each row checks its values; an error is one line and exit status 2.

    fill_defaults: options that are not given get their default; else they are left out.
    """

    def __init__(self, table: Table | None = None, fill_defaults: bool = True, **settings):
        super().__init__(allow_abbrev=False, argument_default=argparse.SUPPRESS, **settings)
        self.names = [option.name for options in (table or {}).values() for option in options]
        for title, options in (table or {}).items():
            group = self.add_argument_group(title) if title else self
            for option in options:
                name = option.name if option.positional else f"--{option.name}"
                keywords = _keywords(option)
                if option.type is not bool:
                    keywords["type"] = partial(self._check, option)
                if fill_defaults:
                    keywords["default"] = copy(option.default)
                group.add_argument(name, **keywords)

    def _check(self, option: Option, text: str) -> Any:
        try:
            return option.check(text)
        except InputError as error:
            self.error(str(error))

    def parse_known_args(self, args=None, namespace=None):
        """Also called for a subcommand; no command takes options that it does not know."""
        words = sys.argv[1:] if args is None else list(args)
        namespace, unknown = super().parse_known_args(words, namespace)
        if unknown:
            before, hint = ["", *words][words.index(unknown[0])], ""
            if unknown[0].startswith(tuple(DASHES)):
                hint = suggest(unknown[0], self.names, "--")
            elif before.startswith("--"):
                hint = f"; {before} takes no value"
            self.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
        return namespace, unknown

    def error(self, message: str):
        self.exit(2, f"{self.prog}: {printable(message)} (see --help)\n")


def subcommand_parser(prog: str, description: str, commands: Mapping[str, tuple[str, Table]]) -> Parser:
    """A parser of subcommands, each with its help and its table. `command` in the result is the chosen one."""
    parser = Parser(prog=prog, description=description)
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    for name, (help_, table) in commands.items():
        subparsers.add_parser(name, table=table, help=help_, description=f"{help_[0].upper()}{help_[1:]}.")
    return parser


def parse_options(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """The options of main_nni.py that are given, each checked; exits with status 2 if one is wrong or unknown."""
    about = "Train and evaluate EAT for image aesthetics assessment. Without options: the demo."
    texts = {"prog": "main_nni.py", "usage": "main_nni.py [OPTION ...]", "description": about}
    return vars(Parser(GROUPS, fill_defaults=False, **texts).parse_args(argv))


def _keywords(option: Option) -> dict[str, Any]:
    """The arguments of argparse's `add_argument`, without `default` and `type`."""
    if option.type is bool:
        return {"help": option.help, "action": "store_true"}
    choices = option.choices and "{" + ",".join(option.choices) + "}"
    keywords = {"metavar": choices or option.metavar or METAVARS.get(option.type, "X")}
    keywords["help"] = option.help + _shown_default(option)
    if option.nargs:
        keywords |= {"action": "append"} if option.nargs == "append" else {"nargs": option.nargs}
    return keywords if option.positional else keywords | {"required": option.required}


def _shown_default(option: Option) -> str:
    if "(default: " in option.help or option.default in ("", []):
        return ""
    if option.default is not None:
        return f" (default: {option.default})"
    values = {name: recipe.get(option.name) for name, recipe in RECIPES.items()}
    if OPTIONS.get(option.name) is not option or set(values.values()) == {None}:
        return ""
    most_common = Counter(values.values()).most_common(1)[0][0]
    shown = [] if most_common is None else [str(most_common)]
    shown += [f"{name}: {value}" for name, value in values.items() if value not in (most_common, None)]
    return f" (default: {', '.join(shown)})"
