"""The frame of every command: its log, and its errors as one line and an exit status."""

from __future__ import annotations

import logging
import os
import resource
import signal
import sys
import warnings
from collections.abc import Callable
from contextlib import redirect_stdout, suppress
from typing import Any, TextIO

from iaa.errors import InputError, Interrupted, TrainingError
from iaa.runtime import distributed

log = logging.getLogger("eat")

FILES, FEWEST_FILES = 4096, 256  # open at a time; a process that reads images takes about ten


class PlainText:
    """A stream that writes control characters, such as those of a file's name, as text; line breaks and tabs stay."""

    def __init__(self, stream: TextIO):
        self.stream = stream

    def write(self, text: str) -> int:
        return self.stream.write(printable(text, "\n\t"))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def printable(text: str, kept: str = "") -> str:
    """The text, with characters that are not printable as `\\x1b`, but those in `kept` and bytes that are not UTF-8."""
    return "".join(
        c if c.isprintable() or c in kept or "\udc80" <= c <= "\udcff" else repr(c)[1:-1] for c in text
    )


def run_command(program: str, work: Callable[[], int | None], rest: str = "nothing was saved yet") -> int:
    """Call `work`; returns the exit status: its result or 0, 1 if it failed, 2 for a bad request, 128 and more after a signal.

    rest: end of the line that is printed after a signal, if no training run can be resumed.
    """
    open_missing_streams()
    level = logging.INFO if os.environ.get("RANK", "0") == "0" else logging.ERROR
    lines = {"format": "[%(asctime)s] %(message)s", "datefmt": "%H:%M:%S"}
    logging.basicConfig(stream=PlainText(sys.stderr), level=level, **lines)
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # file names are bytes
    for library in ("httpx", "httpx2"):  # the hub's, which would log every request
        logging.getLogger(library).setLevel(logging.WARNING)
    warnings.showwarning = lambda message, *_, **__: log.warning("warning: %s", message)
    try:
        distributed.check_environment()
        allow_open_files()
        with redirect_stdout(PlainText(sys.stdout)):
            return work() or 0
    except SystemExit as stop:  # another process of the run prints why
        return stop.code or 0
    except BrokenPipeError:  # nobody reads what is printed any more
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 128 + signal.SIGPIPE
    except BaseException as error:
        reason, status = _describe(error)
        if status is None:
            raise
        if status > 128 and distributed.rank():
            return status
        if folder := getattr(error, "folder", None):
            rest = f"--resume --experiment_dir_name {folder} goes on from the last checkpoint"
        if folder or isinstance(error, Interrupted):
            reason = f"{reason}; {rest}"
    with suppress(OSError):  # nobody reads it
        print(f"{program}: {printable(' '.join(reason.split()))}", file=sys.stderr, flush=True)
    return status


def open_missing_streams() -> None:
    """Open /dev/null in the place of standard streams that are closed: the next files would get their numbers, and their text."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # gets the lowest number that is free
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "w" if number else "r", closefd=False))


def allow_open_files() -> None:
    """Raise the number of files that may be open at a time, up to FILES. Raises InputError if it stays below FEWEST_FILES."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = FILES if hard == resource.RLIM_INFINITY else min(FILES, hard)
    if allowed < FEWEST_FILES:
        raise InputError(f"only {allowed} files may be open at a time; `ulimit -n {FILES}` allows more")
    if soft != resource.RLIM_INFINITY and soft < allowed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))


def _describe(error: BaseException) -> tuple[str, int | None]:
    """What to say of an error, and the exit status; None for an error of the program itself."""
    if isinstance(error, InputError):
        return str(error), 2
    if isinstance(error, TrainingError):
        return str(error), 1
    if isinstance(error, OSError):
        unnamed = "the working folder" if isinstance(error, FileNotFoundError) else "a file"
        return f"{error.filename or unnamed}: {error.strerror or error}; check the path and the disk", 2
    if isinstance(error, Interrupted):
        return f"stopped by {error}", 128 + error.number
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", 130
    if type(error).__name__ == "OutOfMemoryError":  # torch's, which not every command imports
        return "memory ran out; try a smaller --model or another --gpu_id", 1
    if type(error).__name__ == "StorageInternalError":  # Optuna's
        cause = str(error.__cause__).splitlines()[0]
        return f"the search's database cannot be used ({cause}); check its disk", 2
    return "", None
