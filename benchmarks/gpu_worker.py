"""One process that does the parts of the report one by one: an error of a GPU, a crash or a hang costs one part, not the rest."""

from __future__ import annotations

import gc
import json
import multiprocessing
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch

from training.steps import allow_tf32

START = "spawn"  # of its process, which inherits nothing
PART_LIMIT = 300.0  # seconds; compiling a large network's training takes a minute or two


class NotRun(Exception):
    """Why a part cannot be run on this machine."""


@dataclass(frozen=True)
class Setup:
    """What all parts know. parts: the folder of their records. images: a folder with JPEGs."""

    device: torch.device
    parts: Path
    images: Path
    weights: Path | None = None
    reference: Path | None = None
    rehearse: bool = False

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"

    def record(self, name: str) -> dict | None:
        """What was saved of a part."""
        return read_json(self.parts / f"{name}.json")

    def result(self, name: str) -> dict | None:
        """The result of a part that is done."""
        found = self.record(name)
        return found["result"] if found and found["status"] == "done" else None


def read_json(path: Path) -> dict | None:
    """What a file holds; None where there is none, or it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


class Part(NamedTuple):
    """work: a function of a module, which is given the setup and `given`, and returns what JSON can hold."""

    name: str
    work: Callable[..., dict]
    given: dict[str, Any] = {}  # noqa: RUF012  nobody writes to it


@dataclass
class Worker:
    """Runs parts in a process of its own; in a new one after a part that failed, for a GPU's error stays with its process."""

    setup: Setup
    limit: float = PART_LIMIT
    process: multiprocessing.Process | None = field(default=None, init=False)

    def run(self, part: Part) -> dict:
        """The record of a part: its name, `status`, seconds, and `result` or the `reason` why there is none."""
        start = time.monotonic()
        if self.process is None:
            context = multiprocessing.get_context(START)
            self.pipe, theirs = context.Pipe()
            self.process = context.Process(target=serve, args=(theirs, self.setup))
            self.process.start()
            theirs.close()
        try:
            self.pipe.send(part)
            if self.pipe.poll(self.limit):
                found = self.pipe.recv()
            else:
                found = failed(f"it took longer than {self.limit:g} s")
        except (EOFError, ConnectionError):
            self.process.join()
            found = failed(f"its process ended with status {self.process.exitcode}")
        if found["status"] == "failed":
            self.end()
        return {"part": part.name, "seconds": round(time.monotonic() - start, 1)} | found

    def end(self) -> None:
        """End the process, whatever it is doing."""
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.pipe.close()
            self.process = None


def serve(pipe, setup: Setup) -> None:
    """Do the parts that come through the pipe, until nobody is left to send any."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started this one
    gc.freeze()  # what was imported is never looked through again
    while True:
        try:
            part = pipe.recv()
        except EOFError:
            return
        pipe.send(work(part, setup))


def work(part: Part, setup: Setup) -> dict:
    """The record of a part, done here, without its name and time."""
    _clean(setup)
    try:
        result = part.work(setup, **part.given)
        if setup.cuda:
            torch.cuda.synchronize()  # a kernel's error shows here, if not before
    except NotRun as reason:
        return {"status": "not run", "reason": str(reason)}
    except ModuleNotFoundError as error:
        return {"status": "not run", "reason": f"needs the package {error.name}"}
    except Exception as error:
        return failed(f"{type(error).__name__}: {error}") | {"traceback": traceback.format_exc()}
    return {"status": "done", "result": result}


def failed(reason: str) -> dict:
    return {"status": "failed", "reason": " ".join(reason.split())[:400]}


def _clean(setup: Setup) -> None:
    """Every part starts alike: no memory of others, no compiled code of theirs, true float32."""
    gc.collect()
    if "torch._dynamo" in sys.modules:  # else there is nothing to forget, and the import takes seconds
        torch.compiler.reset()
    torch.manual_seed(0)
    allow_tf32(False)
    if setup.cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
