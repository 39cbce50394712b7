"""The frame of every command: its log, and its errors as one line and an exit status."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable

from iaa.errors import InputError, Interrupted, TrainingError
from iaa.runtime import distributed

log = logging.getLogger("eat")


def run_command(program: str, work: Callable[[], int | None], rest: str = "nothing was saved yet") -> int:
    """Call `work`; returns the exit status: its result or 0, 1 if it failed, 2 for a bad request, 128 and more after a signal.

    rest: end of the line that is printed after a signal, if no training run can be resumed.
    """
    level = logging.INFO if distributed.rank() == 0 else logging.ERROR
    lines = {"format": "[%(asctime)s] %(message)s", "datefmt": "%H:%M:%S"}
    logging.basicConfig(stream=sys.stderr, level=level, **lines)
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # file names are bytes
    warnings.showwarning = lambda message, *_, **__: log.warning("warning: %s", message)
    try:
        return work() or 0
    except SystemExit as stop:  # another process of the run prints why
        return stop.code or 0
    except InputError as error:
        reason, status = error, 2
    except TrainingError as error:
        reason, status = error, 1
    except OSError as error:
        file = error.filename or "a file"
        reason, status = f"{file}: {error.strerror or error}; check the path and the disk", 2
    except Interrupted as stop:
        if stop.folder:
            rest = f"--resume --experiment_dir_name {stop.folder} goes on"
        reason, status = f"stopped by {stop}; {rest}", 128 + stop.number
        if distributed.rank():
            return status
    except KeyboardInterrupt:
        reason, status = "interrupted", 130
    except Exception as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's, which not every command imports
            raise
        reason, status = "memory ran out; try a smaller --model or another --gpu_id", 1
    print(f"{program}: {' '.join(str(reason).split())}", file=sys.stderr, flush=True)
    return status
