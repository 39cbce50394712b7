"""The errors that end a command with one line, and its exit status.

An attribute `folder` of an error that ends a training is the folder of the run, from which `--resume` goes on.
"""

from __future__ import annotations

import signal


class InputError(ValueError):
    """A request cannot be met. The message is one line: what is wrong, where, what to do. Exit status 2."""

    def __init__(self, message: str):
        super().__init__(" ".join(str(message).splitlines()))  # a quoted value may have more


class PurposeError(InputError):
    """Nobody states what weights are for, or two state different things."""


class TrainingError(RuntimeError):
    """Training cannot go on. The message is one line: where, and why. Exit status 1."""


class Interrupted(Exception):
    """A signal, whose `number` it has, asks the command to stop."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.number = number
