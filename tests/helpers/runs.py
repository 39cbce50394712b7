"""Runs of main_nni.py: started, stopped, resumed, compared."""

import functools
import json
import logging
import os
import signal
import socket
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch

import main_nni
from helpers.data import arguments
from helpers.processes import ended, fork
from iaa.training import checkpoint, engine, steps

ROOT = Path(__file__).parents[2]


SMALL_RUN = Path(__file__).parents[0] / "main_with_eat_test.py"


TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]


LOST = "the connection to another process is lost"


ENOUGH = 300  # seconds for a process to end where the time is not the point


def until(there, process):
    """Wait for it as long as the process is running."""
    while not there() and process.poll() is None:
        time.sleep(0.01)


def start_two(folder, words):
    """Fork two processes of one run, which leave their weights behind in `folder`; returns their numbers and logs."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}

    def work(rank):
        os.environ.update(place, RANK=str(rank), LOCAL_RANK=str(rank))
        logging.getLogger().handlers[:] = [logging.StreamHandler(sys.stderr)]  # instead of pytest's
        logging.getLogger().setLevel(logging.INFO)
        end_epoch = engine.Trainer.end_epoch

        def spy(trainer, *rest):
            end_epoch(trainer, *rest)
            torch.save([network.state_dict() for network in trainer.stepper.networks], folder / f"{rank}.pt")

        engine.Trainer.end_epoch = spy
        return main_nni.main([str(word) for word in words])

    logs = [folder / f"{rank}.log" for rank in (0, 1)]
    return [fork(functools.partial(work, rank), log) for rank, log in enumerate(logs)], logs


def two_processes(folder, words):
    """(exit status, JSON or None, log) of a run of two processes, forked here; each leaves its own weights behind."""
    children, logs = start_two(folder, words)
    status = max(ended(child) for child in children)
    lines = [line for log in logs for line in log.read_text().splitlines()]
    results = [json.loads(line) for line in lines if line.startswith("{")]
    assert len(results) <= 1
    return status, results[0] if results else None, "\n".join(lines)


METRICS = ("srcc", "plcc", "krcc", "accuracy", "mae", "rmse", "emd_r1", "emd_r2", "loss")


def stop_after_an_epoch(monkeypatch):
    """As if Ctrl-C came just when an epoch's last.pt was written."""
    write = checkpoint.save_last

    def write_and_stop(folder, content):
        write(folder, content)
        if content["progress"]["history"]:
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "save_last", write_and_stop)


def metrics(result):
    return {name: result[name] for name in METRICS}


def weights(folder):
    return torch.load(folder / "checkpoints" / "last.pt", weights_only=True)["model"]


def table(folder):
    return pd.read_csv(folder / "metrics.csv").drop(columns="seconds")


def refused(run, ava, *parts, **options):
    status, _, err = run(arguments(ava, **options))
    lines = [line for line in err.splitlines() if line.startswith("main_nni.py: ")]
    assert status == 2
    assert len(lines) == 1
    assert "Traceback" not in err
    for part in parts:
        assert part in lines[0]
    assert not (ava / "run").exists()


def resume(run, folder):
    status, result, err = run(["--resume", "--experiment_dir_name", folder])
    assert status == 0, err
    return result


def at_step(patch, step, action):
    """Do something in the middle of step number `step` of the run."""
    original, calls = steps.Stepper.backward, []

    def backward(self, *args):
        calls.append(1)
        if len(calls) == step:
            action()
        return original(self, *args)

    patch.setattr(steps.Stepper, "backward", backward)


def signal_myself(number=signal.SIGTERM):
    os.kill(os.getpid(), number)


def cut(ava, run, step=8, action=signal_myself, **options):
    """A run that is stopped in the middle of a step: its exit status and errors."""
    with pytest.MonkeyPatch.context() as patch:
        at_step(patch, step, action)
        status, _, err = run(arguments(ava, experiment_dir_name=ava / "cut", **options))
    return status, err


def state_and_best(folder):
    """All of last.pt but the time that it took, and the bytes of best.pth."""
    content = torch.load(folder / "checkpoints" / "last.pt", weights_only=True)
    for row in content["progress"]["history"]:
        row.pop("seconds")
    return content, (folder / "checkpoints" / "best.pth").read_bytes()


def assert_ends_as(expected, folder):
    (content, best), (expected_content, expected_best) = state_and_best(folder), state_and_best(expected)
    torch.testing.assert_close(content, expected_content, rtol=0, atol=0)
    assert best == expected_best
