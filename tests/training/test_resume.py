"""A run that is lost at any moment goes on to the same result, bit by bit."""

import contextlib
import functools
import json
import multiprocessing
import os
import random
import resource
import signal
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from helpers import runs
from helpers.data import arguments
from helpers.processes import ended, fork
from helpers.runs import assert_ends_as, metrics, resume, signal_myself, table, weights

import main_nni
from iaa.training import checkpoint, engine

RECIPE = {
    "init_lr": 1e-3, "num_epoch": 3, "batch_size": 2, "drop_path_rate": 0.3, "optimizer": "adamw", "schedule": "cosine",
    "refinement": "scheduled",
}  # fmt: skip


cut = functools.partial(runs.cut, **RECIPE)


@pytest.fixture
def whole(trained):
    """The uninterrupted run: its result, final weights and table. 18 steps in 3 epochs."""
    return kept(trained(**RECIPE))


def kept(result):
    folder = Path(result["folder"])
    return result, weights(folder), table(folder)


def assert_same(whole, folder, result):
    expected, state, rows = whole
    assert metrics(result) == metrics(expected)
    found = weights(folder)
    assert all(torch.equal(found[name], state[name]) for name in state)
    pd.testing.assert_frame_equal(table(folder), rows, check_exact=True)


@pytest.mark.slow
@pytest.mark.parametrize("attempt", [1, 2])
def test_killed_at_a_random_step(ava, run, whole, attempt):
    folder = ava / "cut"
    last = folder / "checkpoints" / "last.pt"
    saves = random.randint(1, 12)
    print(f"killed after {saves} saves")
    words = arguments(ava, experiment_dir_name=folder, save_minutes=0, **RECIPE)
    child, seen = fork(lambda: main_nni.main(words)), set()
    while len(seen) < saves and os.waitpid(child, os.WNOHANG) == (0, 0):
        with contextlib.suppress(FileNotFoundError):  # not there yet, or just becoming previous.pt
            seen.add(last.stat().st_mtime_ns)
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    assert ended(child) == -signal.SIGKILL
    assert_same(whole, folder, resume(run, folder))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "status", "name"), [(signal.SIGTERM, 143, "SIGTERM"), (signal.SIGINT, 130, "SIGINT")]
)
def test_a_signal_saves_first_and_says_how_to_go_on(ava, run, whole, number, status, name):
    found, err = cut(ava, run, action=lambda: signal_myself(number))
    assert found == status
    hint = f"--resume --experiment_dir_name {ava / 'cut'} goes on from the last checkpoint"
    assert err.splitlines() == [f"main_nni.py: stopped by {name}; {hint}"]
    saved = torch.load(ava / "cut" / "checkpoints" / "last.pt", weights_only=True)["progress"]
    assert (saved["epoch"], saved["step"]) == (1, 2)
    assert_same(whole, ava / "cut", resume(run, ava / "cut"))


@pytest.mark.slow
@pytest.mark.parametrize("step", [6, 18])
def test_a_signal_in_the_last_step_of_an_epoch(ava, run, whole, step):
    assert cut(ava, run, step)[0] == 143
    assert_same(whole, ava / "cut", resume(run, ava / "cut"))


@pytest.mark.slow
@pytest.mark.parametrize("title", ["validate", "test"])
def test_a_signal_in_an_evaluation(ava, run, monkeypatch, whole, title):
    with monkeypatch.context() as patch:
        interrupt_at_bar(patch, title)
        status, _, err = run(arguments(ava, experiment_dir_name=ava / "cut", **RECIPE))
    assert (status, "--resume --experiment_dir_name" in err) == (143, True)
    assert_same(whole, ava / "cut", resume(run, ava / "cut"))


@pytest.mark.slow
def test_accumulated_steps_are_never_cut_in_two(ava, run, trained):
    expected = kept(trained(**RECIPE, accumulate=4))
    assert cut(ava, run, 2, accumulate=4)[0] == 143
    assert torch.load(ava / "cut" / "checkpoints" / "last.pt", weights_only=True)["progress"]["step"] == 4
    assert_same(expected, ava / "cut", resume(run, ava / "cut"))


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["cut in half", "gone"])
def test_a_damaged_last_checkpoint_falls_back_on_the_one_before(ava, run, whole, caplog, damage):
    cut(ava, run, save_minutes=0)
    last = ava / "cut" / "checkpoints" / "last.pt"
    if damage == "gone":
        last.unlink()
    else:
        last.write_bytes(last.read_bytes()[: len(last.read_bytes()) // 2])
    assert_same(whole, ava / "cut", resume(run, ava / "cut"))
    assert damage == "gone" or "going on from previous.pt instead" in caplog.text
    for path in last.parent.glob("*.pt"):
        path.write_bytes(b"")
    status, _, err = run(["--resume", "--experiment_dir_name", ava / "cut"])
    assert (status, len(err.splitlines())) == (2, 1)
    assert "last.pt: cannot be resumed from" in err
    assert "previous.pt: cannot be resumed from" in err


@pytest.mark.slow
def test_a_full_disk_is_told_and_the_old_checkpoint_survives(ava, run, whole):
    cut(ava, run)
    last = ava / "cut" / "checkpoints" / "last.pt"
    before = last.read_bytes()
    words = ["--resume", "--experiment_dir_name", str(ava / "cut"), "--save_minutes", "0"]

    def work():
        resource.setrlimit(resource.RLIMIT_FSIZE, (10**5, 10**5))
        return main_nni.main(words)

    assert ended(fork(work, ava / "log")) == 2
    log = (ava / "log").read_text()
    assert "last.pt: File too large; check the path and the disk" in log
    assert "Traceback" not in log
    assert last.read_bytes() == before
    assert not [path for path in last.parent.iterdir() if path.name.endswith(".tmp")]
    assert_same(whole, ava / "cut", resume(run, ava / "cut"))


@pytest.mark.slow
def test_an_image_that_becomes_unreadable_stops_the_run_where_it_can_go_on(ava, run, whole):
    picture = ava / "images" / "105.jpg"
    content = picture.read_bytes()
    status, err = cut(ava, run, 1, lambda: picture.write_bytes(b""))
    assert status == 2
    assert "105.jpg: does not decode" in err
    assert "goes on from the last checkpoint" in err
    picture.write_bytes(content)
    assert_same(whole, ava / "cut", resume(run, ava / "cut"))


def kill_workers():
    while not (workers := multiprocessing.active_children()):
        time.sleep(0.05)
    for worker in workers:
        os.kill(worker.pid, signal.SIGKILL)


@pytest.mark.slow
def test_a_worker_that_dies_is_told_and_the_run_goes_on(ava, run, whole):
    status, err = cut(ava, run, 3, kill_workers, num_workers=1)
    assert status == 2
    assert "a process that reads images died" in err
    assert "lower --num_workers (now 1)" in err
    assert len(err.splitlines()) == 1
    assert_same(whole, ava / "cut", resume(run, ava / "cut"))


@pytest.mark.slow
def test_a_signal_to_the_whole_group_is_a_signal(ava, run, whole):
    def to_all():
        signal_myself()
        for child in multiprocessing.active_children():
            os.kill(child.pid, signal.SIGTERM)

    status, err = cut(ava, run, 3, to_all, num_workers=2)
    assert status == 143, err
    assert_same(whole, ava / "cut", resume(run, ava / "cut"))


def interrupt_at_bar(monkeypatch, wanted):
    original = engine.progress_bar

    def bar(title, *args):
        if title == wanted:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(title, *args)

    monkeypatch.setattr(engine, "progress_bar", bar)


@pytest.mark.slow
@pytest.mark.parametrize(("epoch", "damage"), [(1, True), (2, False), (3, True)])
def test_best_weights_that_are_newer_than_the_checkpoint_are_made_again(ava, run, trained, epoch, damage):
    """Killed between the two writes, best.pth and last.pt of an epoch; or last.pt is damaged after both."""
    given, folder = RECIPE | {"init_lr": 1e-4, "seed": 2, "select_by": "loss"}, ava / "cut"
    expected = trained(**given)
    losses = pd.read_csv(Path(expected["folder"]) / "metrics.csv")["val_loss"]
    assert losses.is_monotonic_decreasing  # each epoch writes best.pth
    save_last, last = checkpoint.save_last, folder / "checkpoints" / "last.pt"

    def write_and_die(checkpoints, content):
        if content["progress"]["epoch"] != epoch:
            return save_last(checkpoints, content)
        if damage:
            save_last(checkpoints, content)
            last.write_bytes(last.read_bytes()[:-1000])
        os.kill(os.getpid(), signal.SIGKILL)

    def work():
        checkpoint.save_last = write_and_die
        return main_nni.main(arguments(ava, experiment_dir_name=folder, **given, save_minutes=0))

    assert ended(fork(work)) == -signal.SIGKILL
    assert checkpoint.epoch_of(folder / "checkpoints" / "best.pth") == epoch
    assert metrics(resume(run, folder)) == metrics(expected)
    assert_ends_as(Path(expected["folder"]), folder)


def test_a_signal_while_evaluating_says_that_nothing_was_saved(ava, run, monkeypatch, whole):
    interrupt_at_bar(monkeypatch, "test")
    status, _, err = run(arguments(ava, eval=True, path_to_model_weight=whole[0]["files"]["best"]))
    assert status == 143
    assert err.splitlines() == ["main_nni.py: stopped by SIGTERM; nothing was saved yet"]
    assert json.loads((ava / "run" / "run.json").read_text())["status"] == "stopped"


@pytest.mark.slow
def test_what_a_killed_save_left_is_removed(ava, run):
    cut(ava, run)
    names = (".last.pt.123.tmp", ".best.pth.7.tmp")
    strays = [ava / "cut" / "checkpoints" / name for name in names]
    for stray in strays:
        stray.write_bytes(b"half")
    resume(run, ava / "cut")
    assert not any(stray.exists() for stray in strays)
