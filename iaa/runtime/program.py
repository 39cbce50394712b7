"""The frame of every command: its log, and its errors as one line and an exit status."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable

from iaa.errors import InputError, Interrupted, TrainingError
from iaa.runtime import distributed

log = logging.getLogger("eat")


def print_error(program: str, reason: object) -> None:
    """Print why a command ends, as one line."""
    print(f"{program}: {' '.join(str(reason).split())}", file=sys.stderr, flush=True)


def run_command(program: str, work: Callable[[], int | None], rest: str = "nothing was saved yet") -> int:
    """Call `work`; returns the exit status: its result or 0, 1 if it failed, 2 for a bad request, 128 and more after a signal.

    rest: end of the line that is printed after a signal, if no training run can be resumed.
    """
    level = logging.INFO if distributed.rank() == 0 else logging.ERROR
    logging.basicConfig(
        stream=sys.stderr, level=level, format="[%(asctime)s] %(message)s", datefmt="%H:%M:%S"
    )
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # file names are bytes
    warnings.showwarning = lambda message, *_, **__: log.warning("warning: %s", message)

    def fail(reason: object, status: int) -> int:
        print_error(program, reason)
        return status

    try:
        return work() or 0
    except (InputError, TrainingError) as error:
        return fail(error, 2 if isinstance(error, InputError) else 1)
    except OSError as error:
        what = f"{error.filename or 'a file'}: {error.strerror or error}"
        return fail(f"{what}; check the path and the disk", 2)
    except SystemExit as stop:  # another process of the run prints why
        return stop.code or 0
    except Interrupted as stop:
        if distributed.rank():
            return 128 + stop.number
        rest = f"--resume --experiment_dir_name {stop.folder} goes on" if stop.folder else rest
        return fail(f"stopped by {stop}; {rest}", 128 + stop.number)
    except KeyboardInterrupt:
        return fail("interrupted", 130)
    except Exception as error:
        if "torch" not in sys.modules or not isinstance(error, sys.modules["torch"].OutOfMemoryError):
            raise
        return fail("memory ran out; try a smaller --model or another --gpu_id", 1)
