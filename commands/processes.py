"""The processes of one run: met, watched while they work, and parted from. A single one pays nothing."""

from __future__ import annotations

import itertools
import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from datetime import timedelta

import torch
import torch.distributed as dist

from commands.distributed import gather, largest, rank, world
from commands.errors import TrainingError, tell
from option import InputError

PATIENCE = timedelta(hours=2)  # rank 0 alone may evaluate a whole test set, while the others wait
BEAT = 1.0  # seconds
SILENT, SOON = 30, 5  # beats without a sign of life that are too many; SOON: where a message failed, too
FAILED = b"failed"

Close = Callable[[BaseException], BaseException]
Watched = Callable[[Close], AbstractContextManager]


class Gone(TrainingError):
    """Another process of the run is gone; the message says which one, and how to go on."""


@contextmanager
def together(program: str, remedy: str) -> Iterator[Watched]:
    """Meet the other processes, if there are any, watch over them, and part from them at the end.

    remedy: what to do when one is lost, for its line. Yields `Pulse.watched`, or what does nothing where there is one
    process. Raises InputError where they do not meet.
    """
    if world() == 1:
        yield nullcontext
        return
    try:
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        store = _meet()
        dist.init_process_group(
            backend, timeout=PATIENCE, store=store.clone(), rank=rank(), world_size=world()
        )
        pulse = Pulse(program, remedy, store)
    except RuntimeError as error:
        network = "GLOO_SOCKET_IFNAME names the network's interface; see two machines in docs/training.md"
        raise InputError(f"the processes do not reach each other ({str(error)[:200]}); {network}") from error
    try:
        with pulse.watched(pulse.close):
            yield pulse.watched
            largest(0)
    except BaseException:
        pulse.stop(failed=True)
        raise
    pulse.stop()
    dist.destroy_process_group()


def _meet() -> dist.TCPStore:
    """A store of this start alone, beside rank 0: torchrun's own keeps the addresses of processes that it has replaced."""
    place, own = (os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])), None
    by_torchrun = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    known = dist.TCPStore(*place, is_master=rank() == 0 and not by_torchrun, timeout=PATIENCE)
    if not by_torchrun:
        return known
    if rank() == 0:
        own = dist.TCPStore(place[0], 0, is_master=True, timeout=PATIENCE, wait_for_workers=False)
        known.set("store", str(own.port))
    while own is None:
        port = int(known.get("store"))
        with suppress(RuntimeError):  # of a start before this one: nobody answers there
            own = dist.TCPStore(place[0], port, timeout=timedelta(seconds=2))
            own.set_timeout(PATIENCE)
    return own


class Pulse:
    """Signs of life: a thread leaves this process's in the run's store and reads the others'; another one judges by them.

    The store is where rank 0 is, and where the network is gone it answers nothing for a quarter of an hour: who judges
    asks nobody, and counts beats instead of seconds, so that a process that was stopped itself blames no other.
    """

    def __init__(self, program: str, remedy: str, store: dist.TCPStore):
        self.program, self.remedy, self.parent, self.store = program, remedy, os.getppid(), store
        self.keys = [f"life/{number}" for number in range(world())]
        self.store.set(self.keys[rank()], "0")
        self.hosts = gather(socket.gethostname())  # from here on everybody's key is there
        self.values, self.silent = [b""] * world(), [0] * world()
        self.over, self.deciding, self.failed = threading.Event(), threading.Lock(), False
        self.close: Close = lambda error: error
        self.beating = threading.Thread(target=self._beat, daemon=True)
        self.beating.start()
        threading.Thread(target=self._judge, daemon=True).start()

    @contextmanager
    def watched(self, close: Close) -> Iterator[None]:
        """While this lasts, `close` is called before a loss ends this process; a message that fails becomes the loss."""
        before, self.close = self.close, close
        try:
            yield
        except RuntimeError as error:
            lost = isinstance(error, dist.DistError) or "gloo" in str(error).lower()
            if isinstance(error, TrainingError) or not lost:
                raise
            for _ in range(2 * SOON):
                if self._gone(SOON) or self.over.wait(BEAT):
                    break
            with self.deciding:
                self.over.set()
            raise self._loss(self._gone(SOON)) from error
        finally:
            self.close = before

    def stop(self, failed: bool = False) -> None:
        """Leave no further sign of life. failed: the others are told."""
        self.failed = failed
        self.over.set()
        self.beating.join(BEAT)
        if failed and rank() == 0:  # the store ends with this process
            time.sleep(2 * BEAT)

    def _beat(self) -> None:
        own = self.keys[rank()]
        for count in itertools.count(1):
            with suppress(RuntimeError):  # out of reach: `silent` says so
                self.store.set(own, str(count))
                for number, value in enumerate(self.store.multi_get(self.keys)):
                    if value != self.values[number]:
                        self.values[number] = value
                        self.silent[number] = SILENT - SOON if value == FAILED else 0
            if self.over.wait(BEAT):
                break
        with suppress(RuntimeError):
            if self.failed:
                self.store.set(own, FAILED)

    def _judge(self) -> None:
        while not self.over.wait(BEAT):
            for number in range(world()):
                self.silent[number] += 1
            if os.getppid() != self.parent or self._gone(SILENT):
                self._end()

    def _end(self) -> None:
        """End this process from beside its main thread, which may wait for the lost one for hours."""
        with self.deciding:
            if self.over.is_set():
                return
            error = self.close(self._loss(self._gone(SILENT)))
            if isinstance(error, Gone):
                tell(self.program, error)
            os._exit(1)

    def _free_torchrun(self) -> None:
        """Where torchrun has no restart left it ends now, or in five seconds: its store, out of reach, would hold it longer."""
        left = os.environ.get("TORCHELASTIC_MAX_RESTARTS"), os.environ.get("TORCHELASTIC_RESTART_COUNT")
        if left[0] is not None and left[0] == left[1] and os.getppid() == self.parent:
            quiet = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
            kill = ["sh", "-c", f"sleep 5; kill -9 {self.parent}"]
            subprocess.Popen(kill, start_new_session=True, **quiet)

    def _gone(self, beats: int) -> list[int]:
        """Who has been silent for so long. Where not even this process's own sign comes back, it is rank 0, with the store."""
        if rank() and self.silent[rank()] + 2 >= beats:
            return [0]
        return [number for number in range(world()) if self.silent[number] >= beats and number != rank()]

    def _loss(self, gone: list[int]) -> Gone | SystemExit:
        """What to end with; of the processes of one machine the first tells it, the others are quiet."""
        here = [n for n, host in enumerate(self.hosts) if host == self.hosts[rank()] and n not in gone]
        if here[0] != rank():
            return SystemExit(1)
        ends = {True: "has failed", False: "is gone"}
        what = ", ".join(f"rank {n} on {self.hosts[n]} {ends[self.values[n] == FAILED]}" for n in gone)
        if os.getppid() != self.parent:
            what = "torchrun, or what else started this process, is gone"
        what = what or "the connection to another process is lost"
        self._free_torchrun()
        return Gone(f"{what}; {self.remedy}")
