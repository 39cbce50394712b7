"""Whether the process that a run.json names is alive, on this machine or on another one."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from iaa.runtime.files import read_json_object

LOCK = ".lock"  # a file beside run.json, which a process locks while it takes the folder over
BEAT = 60  # seconds between two writes of run.json by a living process
DEAD_AFTER = 300  # seconds without a write after which a process of another machine counts as dead


def identify_process() -> dict[str, Any]:
    """This process, as run.json names it. pid_space: two containers may have one host name and numbers of their own."""
    space = os.readlink("/proc/self/ns/pid")
    number = {"pid": os.getpid(), "pid_started": process_start_time(os.getpid()), "pid_space": space}
    return {"host": socket.gethostname(), **number}


def process_start_time(pid: int) -> str:
    """The start time of a process of this machine, which tells it from a later one of the same number; empty if it has ended."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (OSError, ValueError):
        return ""
    fields = text.rpartition(")")[2].split()
    return fields[19] if fields and fields[0] != "Z" else ""


def describe_owner(folder: Path) -> str:
    """The living process, other than this one, whose run is in the folder, in words; empty if there is none."""
    run, me = read_json_object(folder / "run.json"), identify_process()
    is_me = run | me == run  # run.json has all entries of this process
    if run.get("status") != "running" or not run.get("host") or is_me:
        return ""
    owner = f"process {run.get('pid')} on {run['host']}"
    is_here = run["host"] == me["host"] and run.get("pid_space", me["pid_space"]) == me["pid_space"]
    if is_here and run.get("pid_started"):
        return owner if process_start_time(run.get("pid")) == run["pid_started"] else ""
    try:
        (folder / LOCK).touch()
        now = (folder / LOCK).stat().st_mtime  # by the clock of the machine that has the disk
    except OSError:  # a folder that may only be read
        now = time.time()
    age = now - (folder / "run.json").stat().st_mtime
    return f"{owner} (its last sign of life is {age:.0f} s old)" if age < DEAD_AFTER else ""


@contextmanager
def repeated(work: Callable[[], None], first: float, every: float) -> Iterator[None]:
    """Call `work` in a thread, after `first` seconds and then `every` seconds, until the context ends."""
    ended = threading.Event()

    def repeat() -> None:
        wait = first
        while not ended.wait(wait):
            work()
            wait = every

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
