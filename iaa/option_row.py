"""One option of a command: its name, type, default and help, and the check of its values. No torch in here."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from iaa.errors import InputError


@dataclass(frozen=True)
class Option:
    """One row of a command's table. `default` None: the dataset's recipe decides, or nothing. `low`, `high`: inclusive."""

    name: str
    type: Callable[[str], Any]
    default: Any
    help: str
    choices: Sequence[str] | None = None  # timm/NAME allows every value that begins with timm/
    low: float | None = None
    high: float | None = None
    positive: bool = False
    tunable: bool = False  # the search may set it
    resumable: bool = False  # may change without making a resumed run another one
    metavar: str | None = None  # what --help calls the value
    nargs: str | None = None  # as argparse has it; "append": may be given again and again
    positional: bool = False
    required: bool = False
    parse: Callable[[str], Any] | None = None  # raises InputError for a text that it cannot read

    def check(self, value: Any, source: str | None = None) -> Any:
        """`value` in this option's type. Raises InputError that names the option, the value and the remedy.

        source: the file or the tuner that gave the value; None: the command line, where every value is text.
        Whole numbers are 0 or more, unless `low` says otherwise.
        """
        name = self.name if self.positional else f"--{self.name}"
        where = f"{name} {value}".rstrip() if source is None else f"{source}: {self.name} = {value!r}"
        is_text, is_truth = isinstance(value, str), isinstance(value, bool)
        try:
            if is_truth != (self.type is bool) or (source and is_text != (self.type is str)):
                raise ValueError
            if self.type is int and not (value := float(value)).is_integer():
                raise ValueError
            value = self.type(value)
        except (TypeError, ValueError, OverflowError):
            raise InputError(f"{where} is not {_TYPE_NAMES.get(self.type, 'valid')}") from None
        low, high = 0 if self.type is int and self.low is None else self.low, self.high
        limits = f"at least {low}" if high is None else f"between {low or 0} and {high}"
        outside = (low is not None and value < low) or (high is not None and value > high)
        choices = self.choices or ()
        prefixes = tuple(choice.removesuffix("NAME") for choice in choices if choice.endswith("/NAME"))
        allowed = not choices or value in choices or str(value).startswith(prefixes)
        for wrong, problem in (
            (self.type is float and not math.isfinite(value), " is not a finite number"),
            (value == "" and self.default != "", " is empty; give a value or leave the option out"),
            (not allowed, f": choose from {', '.join(choices)}"),
            (self.positive and not value > 0, " must be greater than 0"),
            (outside, f" must be {limits}"),
        ):
            if wrong:
                raise InputError(where + problem)
        try:
            if self.parse:
                self.parse(value)
        except InputError as error:
            raise InputError(f"{where}: {error}") from None
        return value


_TYPE_NAMES = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
