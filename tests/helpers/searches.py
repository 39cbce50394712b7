"""Searches: their command lines, and what became of their trials."""

import logging
import multiprocessing
import os
import signal
import sys
import time

import search
from iaa.searching import results

SPACE = {
    "init_lr": {"_type": "loguniform", "_value": [1e-5, 1e-2]},
    "batch_size": {"_type": "choice", "_value": [4, 6]},
}


def words(folder, count, *rest, epochs=2, **options):
    flags = [word for name, value in options.items() for word in (f"--{name}", value)]
    start = ("run", "--space", folder / "space.json", "--out", folder / "s", "--trials", count, *flags, "--")
    return (*start, "--num_epoch", epochs, *rest)


def in_background(*line, errors=os.devnull):
    """search.py in a process of its own, which inherits what the fake has put in place."""

    def work():
        signal.signal(signal.SIGINT, signal.default_int_handler)  # which a background job would ignore
        sys.stderr = open(errors, "w")  # noqa: SIM115  until this process ends
        logging.getLogger("eat").addHandler(logging.StreamHandler())
        sys.exit(search.main([str(word) for word in line]))

    process = multiprocessing.get_context("fork").Process(target=work, daemon=True)
    process.start()
    return process


def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def epochs_of(folder):
    path = folder / "metrics.csv"
    return len(path.read_text().splitlines()) - 1 if path.is_file() else 0


def read_all(folder):
    return results.read_results(folder / "s")[0]
