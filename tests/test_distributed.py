"""Two processes of torchrun on one CPU: the same weights everywhere, a single process's metrics, one message."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import arguments
from test_run import metrics

ROOT = Path(__file__).parent.parent
RECIPE = {
    "init_lr": 1e-3,
    "num_epoch": 2,
    "batch_size": 2,
    "drop_path_rate": 0.3,
    "interest_points": "running",
}

# What torchrun starts: main_nni.py, which also leaves each process's own weights behind.
SPY = """
import os, sys, torch, main_nni
from training import engine
fit = engine.fit
def spy(training, *rest):
    fit(training, *rest)
    torch.save(training.stepper.model.state_dict(), os.path.join(os.environ["SPY"], os.environ["RANK"] + ".pt"))
engine.fit = spy
sys.exit(main_nni.main(sys.argv[1:]))
"""


def start(folder, words):
    (folder / "spy.py").write_text(SPY)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    return subprocess.Popen(
        [*command, folder / "spy.py", *map(str, words)],
        cwd=ROOT,
        env=os.environ | {"SPY": str(folder), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def torchrun(folder, words):
    """(exit status, JSON or None, standard error) of a run of two processes."""
    process = start(folder, words)
    out, err = process.communicate(timeout=300)
    lines = out.strip().splitlines()
    assert len(lines) <= 1
    return process.returncode, json.loads(lines[0]) if lines else None, err


@pytest.mark.parametrize(("points", "sync"), [("batch", None), ("running", None), ("running", True)])
def test_two_processes_train_one_network_and_evaluate_as_one_does(ava, run, points, sync):
    """14 test images in batches of 4: the last batch is short, and the processes have two batches each."""
    lines = (ava / "train.csv").read_text().splitlines()
    with (ava / "test.csv").open("a") as file:
        file.write("\n".join(lines[1:9]) + "\n")
    given = RECIPE | {"interest_points": points, "eval_batch_size": 4, "sync_interest_points": sync}
    status, result, err = torchrun(ava, arguments(ava, **given))
    assert status == 0, err
    assert err.count("epoch 2/2") == 1  # one process logs
    a, b = (torch.load(ava / f"{rank}.pt") for rank in (0, 1))
    assert all(torch.equal(a[name], b[name]) for name in a)
    best = {
        "eval": True,
        "path_to_model_weight": ava / "run" / "checkpoints" / "best.pth",
        "eval_batch_size": 4,
    }
    _, alone, _ = run(arguments(ava, **best, experiment_dir_name=ava / "alone"))
    status, together, err = torchrun(ava, arguments(ava, **best, experiment_dir_name=ava / "together"))
    assert status == 0, err
    assert result["images"] == alone["images"] == 14
    assert metrics(together) == pytest.approx(metrics(alone), rel=1e-6, nan_ok=True)
    assert metrics(result) == pytest.approx(metrics(alone), rel=1e-6, nan_ok=True)
    history = pd.read_csv(ava / "run" / "metrics.csv").iloc[result["best_epoch"] - 1]
    (ava / "test.csv").write_bytes((ava / "val.csv").read_bytes())
    _, validated, _ = run(arguments(ava, **best, experiment_dir_name=ava / "validated"))
    assert validated["loss"] == pytest.approx(history["val_loss"], rel=1e-6)
    tables = [pd.read_csv(ava / name / "predictions.csv") for name in ("run", "alone", "together")]
    for table in tables[1:]:
        pd.testing.assert_frame_equal(table, tables[0], rtol=1e-5)


def test_the_released_protocol_evaluates_on_one_process(ava, run):
    status, result, err = torchrun(ava, arguments(ava, released_protocol=True, num_epoch=1, batch_size=4))
    assert status == 0, err
    weights = ava / "run" / "checkpoints" / "best.pth"
    _, alone, _ = run(
        arguments(
            ava, eval=True, path_to_model_weight=weights, batch_size=4, experiment_dir_name=ava / "alone"
        )
    )
    assert metrics(result) == pytest.approx(metrics(alone), rel=1e-6, nan_ok=True)


def test_two_processes_accumulate_stop_and_resume_as_if_they_had_not(ava):
    given = RECIPE | {"accumulate": 2, "num_epoch": 3}
    status, whole, err = torchrun(ava, arguments(ava, **given, experiment_dir_name=ava / "whole"))
    assert status == 0, err
    last = ava / "cut" / "checkpoints" / "last.pt"
    process = start(ava, arguments(ava, **given, experiment_dir_name=ava / "cut", save_minutes=0))
    while not last.exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)  # torchrun hands it on
    _, err = process.communicate()
    assert "stopped by SIGTERM; --resume --experiment_dir_name" in err
    status, resumed, err = torchrun(ava, ["--resume", "--experiment_dir_name", ava / "cut"])
    assert status == 0, err
    assert metrics(resumed) == metrics(whole)
    columns = ["train_loss", "val_loss", "val_srcc"]
    tables = [pd.read_csv(ava / name / "metrics.csv")[columns] for name in ("whole", "cut")]
    pd.testing.assert_frame_equal(*tables, check_exact=True)


def test_one_process_that_fails_ends_all_with_its_message(ava):
    (ava / "images" / "103.jpg").write_bytes(b"")
    start_time = time.monotonic()
    status, result, err = torchrun(ava, arguments(ava, **RECIPE))
    assert status != 0
    assert result is None
    assert "103.jpg: does not decode" in err
    assert time.monotonic() - start_time < 120
    ours = [line for line in err.splitlines() if line.startswith("main_nni.py: ")]
    assert sum("103.jpg" in line for line in ours) == 1
    assert all("103.jpg" in line or "another process of this run has ended" in line for line in ours)
    assert err.count("Traceback (most recent call last)") == 1  # torchrun's own


def test_another_number_of_processes_does_not_resume(ava, run):
    assert run(arguments(ava, num_epoch=1))[0] == 0
    status, _, err = torchrun(ava, ["--resume", "--experiment_dir_name", ava / "run"])
    assert status != 0
    assert "of a run with 1 processes, not 2; start as many" in err
