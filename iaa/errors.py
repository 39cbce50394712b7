"""The errors that end a command with one line, and its exit status."""

from __future__ import annotations

import signal
from pathlib import Path


class InputError(ValueError):
    """A request cannot be met. The message is one line: what is wrong, where, what to do. Exit status 2."""

    def __init__(self, message: str):
        super().__init__(" ".join(str(message).splitlines()))  # a quoted value may have more


class PurposeError(InputError):
    """Nobody states what weights are for, or two state different things."""


class TrainingError(RuntimeError):
    """Training cannot go on. The message is one line: where, and why. Exit status 1."""


class Interrupted(Exception):
    """A signal asks the run to stop. `number` is the signal's; `folder` holds what is saved, None if nothing is."""

    folder: Path | None = None

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.number = number
