"""Two processes on one CPU: the same weights everywhere, a single process's metrics, one message."""

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from helpers.data import arguments
from helpers.processes import ended
from helpers.runs import ENOUGH, LOST, SMALL_RUN, TORCHRUN, metrics, start_two, two_processes, until

from iaa.training import steps

RECIPE = {"init_lr": 1e-3, "num_epoch": 2, "batch_size": 2, "drop_path_rate": 0.3}


def files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_two_processes_train_one_network_and_evaluate_as_one_does(ava, run):
    """14 test images in batches of 4: the last batch is short, and the processes have two batches each."""
    lines = (ava / "train.csv").read_text().splitlines()
    with (ava / "test.csv").open("a") as file:
        file.write("\n".join(lines[1:9]) + "\n")
    given = RECIPE | {"eval_batch_size": 4, "ema_decay": 0.5}
    status, result, err = two_processes(ava, arguments(ava, **given))
    assert status == 0, err
    assert err.count("epoch 2/2") == 1  # one process logs
    a, b = (torch.load(ava / f"{rank}.pt") for rank in (0, 1))
    assert len(a) == 2  # the network, and the moving average of its weights
    for first, second in zip(a, b, strict=True):
        assert all(torch.equal(first[name], second[name]) for name in first)
    weights = ava / "run" / "checkpoints" / "best.pth"
    best = {"eval": True, "path_to_model_weight": weights, "eval_batch_size": 4}
    _, alone, _ = run(arguments(ava, **best, experiment_dir_name=ava / "alone"))
    status, together, err = two_processes(ava, arguments(ava, **best, experiment_dir_name=ava / "together"))
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


@pytest.mark.slow
def test_the_released_protocol_evaluates_on_one_process(ava, run):
    words = arguments(ava, released_protocol=True, batch_size=4)
    status, result, err = two_processes(ava, words)
    assert status == 0, err
    given = {"path_to_model_weight": ava / "run" / "checkpoints" / "best.pth", "batch_size": 4}
    _, alone, _ = run(arguments(ava, **given, eval=True, experiment_dir_name=ava / "alone"))
    assert metrics(result) == pytest.approx(metrics(alone), rel=1e-6, nan_ok=True)


@pytest.mark.slow
def test_one_process_that_fails_ends_all_with_its_message(ava):
    (ava / "images" / "103.jpg").write_bytes(b"")
    status, result, err = two_processes(ava, arguments(ava, **RECIPE))
    assert (status, result) == (2, None)
    ours = [line for line in err.splitlines() if line.startswith("main_nni.py: ")]
    assert sum("103.jpg: does not decode" in line for line in ours) == 1
    assert all("103.jpg" in line or LOST in line for line in ours), ours
    assert "Traceback" not in err


@pytest.mark.slow
def test_a_killed_process_ends_the_other_at_once_with_a_line(ava):
    """The processes are started by hand, so that nothing but the lost connection ends the second one."""
    words = arguments(ava, **RECIPE | {"num_epoch": 500}, save_minutes=0)
    children, logs = start_two(ava, words)
    last = ava / "run" / "checkpoints" / "last.pt"
    while not last.exists():
        time.sleep(0.01)
    os.kill(children[1], signal.SIGKILL)
    start_time = time.monotonic()
    assert [ended(child) for child in children] == [1, -signal.SIGKILL]
    seconds = time.monotonic() - start_time
    print(f"without the other process: {seconds:.1f} s")
    assert seconds < 60
    [line] = [line for line in logs[0].read_text().splitlines() if line.startswith("main_nni.py: ")]
    assert f"rank 0: {LOST}" in line
    assert line.endswith(f"; --resume --experiment_dir_name {ava / 'run'} goes on from the last checkpoint")
    assert LOST in json.loads((ava / "run" / "run.json").read_text())["reason"]


@pytest.mark.slow
def test_torchrun_starts_again_after_a_kill_hands_on_a_signal_and_the_run_goes_on_to_the_same_result(ava):
    """With accumulated steps. The first start writes over a run, the second one resumes."""
    given = RECIPE | {"accumulate": 2, "num_epoch": 8}
    status, whole, err = two_processes(ava, arguments(ava, **given, experiment_dir_name=ava / "whole"))
    assert status == 0, err
    (ava / "main_nni.py").symlink_to(SMALL_RUN)
    folder, log = ava / "run", ava / "log"
    folder.mkdir()
    (folder / "options.json").write_text("{}")
    words = arguments(ava, **given, save_minutes=0, overwrite=True, loss="auto")
    command = [*TORCHRUN, "--standalone", "--nproc_per_node=2", "--max_restarts=1", "main_nni.py", *words]
    with log.open("w") as out:
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(list(map(str, command)), cwd=ava, env=environment, stdout=out, stderr=out)
    until((folder / "checkpoints" / "last.pt").exists, process)
    workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    (second,) = [pid for pid in workers if b"\0RANK=1\0" in Path(f"/proc/{pid}/environ").read_bytes()]
    os.kill(int(second), signal.SIGKILL)
    until(lambda: "resumed after" in log.read_text(), process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(ENOUGH) != 0
    said = log.read_text()
    assert said.count("stopped by SIGTERM; --resume --experiment_dir_name") == 1, said
    status, resumed, err = two_processes(ava, ["--resume", "--experiment_dir_name", folder])
    assert status == 0, err
    assert metrics(resumed) == metrics(whole)
    columns = ["train_loss", "val_loss", "val_srcc"]
    tables = [pd.read_csv(path / "metrics.csv")[columns] for path in (ava / "whole", folder)]
    pd.testing.assert_frame_equal(*tables, check_exact=True)


def test_restarts_need_the_name_of_the_folder(ava, run, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    status, _, err = run(arguments(ava, experiment_dir_name=None))
    assert status == 2
    assert err.splitlines() == [
        "main_nni.py: torchrun --max_restarts needs --experiment_dir_name, to find the run again; give one"
    ]


def test_a_restart_resumes_its_own_run_alone(ava, run, ran, monkeypatch):
    """As if its start was refused, for the folder holds another run: that one is neither resumed nor replaced."""
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    before = files(ava / "run")
    status, _, err = run(arguments(ava, init_lr=0.5))
    assert (status, "--init_lr 0.5 differs from the run's" in err) == (2, True), err
    shutil.rmtree(ava / "run" / "checkpoints")
    status, _, err = run(arguments(ava, init_lr=0.5))
    assert (status, "holds a run" in err) == (2, True), err
    assert files(ava / "run") == {path: content for path, content in before.items() if path.exists()}


def test_a_restart_begins_anew_where_nothing_was_saved(ava, run, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(steps.Stepper, "backward", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(arguments(ava))
    assert not list((ava / "run").glob("checkpoints/*"))
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert run(arguments(ava))[0] == 0


@pytest.mark.slow
def test_another_number_of_processes_does_not_resume(ava, ran):
    before = files(ava / "run")
    status, _, err = two_processes(ava, ["--resume", "--experiment_dir_name", ava / "run"])
    assert status == 2
    [line] = [line for line in err.splitlines() if "main_nni.py: " in line]
    assert f"{ava / 'run'}: of a run with 1 processes, not 2; start as many" in line
    assert {path: content for path, content in files(ava / "run").items() if path in before} == before
