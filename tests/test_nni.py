"""A real NNI experiment of two trials, from `nnictl create` to the results read back."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pandas as pd
import pytest
from conftest import arguments

import option
from searching import trial
from util import METRICS

ROOT = Path(__file__).parent.parent
pytest.importorskip("nni")


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.mark.slow
def test_two_trials_of_a_real_experiment(ava, monkeypatch):
    port, home = free_port(), ava / "home"
    home.mkdir()
    words = arguments(ava, experiment_dir_name=ava / "trials", num_epoch=2, batch_size=None)
    config = {
        "experimentName": "test",
        "searchSpaceFile": str(ROOT / "config_search.json"),
        "trialCommand": " ".join([sys.executable, "main_nni.py", *words]),
        "trialCodeDirectory": str(ROOT),
        "trialConcurrency": 1,
        "maxTrialNumber": 2,
        "experimentWorkingDirectory": str(ava / "nni"),
        "tuner": {"name": "Random", "classArgs": {"seed": 0}},
        "trainingService": {"platform": "local"},
    }
    (ava / "config.yml").write_text(json.dumps(config))  # JSON is YAML
    environment = os.environ | {
        "HOME": str(home),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }

    def nnictl(*words):
        command = [sys.executable, "-m", "nni.tools.nnictl.nnictl", *words]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)

    def ask(path):
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/v1/nni/{path}", timeout=10) as reply:
            return json.load(reply)

    created = nnictl("create", "--config", str(ava / "config.yml"), "--port", str(port))
    assert created.returncode == 0, created.stdout + created.stderr
    try:
        deadline = time.time() + 240
        while (
            ask("check-status")["status"] not in ("DONE", "ERROR", "NO_MORE_TRIAL") and time.time() < deadline
        ):
            time.sleep(2)
        experiment = ask("experiment")["id"]
        while len(trials := ask("trial-jobs")) < 2 or any(t["status"] != "SUCCEEDED" for t in trials):
            assert time.time() < deadline, [(t["status"], t.get("stderrPath")) for t in trials]
            time.sleep(2)
        reports = ask("metric-data")
    finally:
        nnictl("stop", "--all")

    for job in trials:
        folder = ava / "trials" / experiment / job["trialJobId"]
        drawn = json.loads(job["hyperParameters"][0])["parameters"]
        used = json.loads((folder / "options.json").read_text())
        assert drawn["batch_size"] in (16, 24, 32)
        assert {name: used[name] for name in drawn} == drawn
        mine = [r for r in reports if r["trialJobId"] == job["trialJobId"]]
        epochs = [json.loads(json.loads(r["data"])) for r in mine if r["type"] == "PERIODICAL"]
        final = [json.loads(json.loads(r["data"])) for r in mine if r["type"] == "FINAL"]
        rows = pd.read_csv(folder / "metrics.csv")
        metrics = [name for name in rows if name.startswith("val_")]
        assert len(metrics) == len(METRICS) + 1
        for report, row in zip(epochs, rows.to_dict("records"), strict=True):
            assert {name: report[name] for name in metrics} == pytest.approx(
                {name: row[name] for name in metrics}
            )
            assert (report["default"], report["vsrcc"]) == (report["val_accuracy"], report["val_srcc"])
        assert final == [max(epochs, key=lambda report: report["vsrcc"])]


def test_space_and_experiment_are_the_released_ones():
    space = json.loads((ROOT / "config_search.json").read_text())
    assert space["batch_size"] == {"_type": "choice", "_value": [16, 24, 32]}
    assert space["init_lr"] == {"_type": "choice", "_value": [1e-5, 1e-6]}
    for name, values in space.items():
        for value in values["_value"]:
            assert option.tuned({name: value}) == {name: value}
    assert "searchSpaceFile: config_search.json" in (ROOT / "config.yml").read_text()


def test_outside_an_experiment_nothing_is_asked_of_nni(monkeypatch):
    monkeypatch.delenv("NNI_TRIAL_JOB_ID", raising=False)
    assert not trial.in_experiment()
    assert trial.parameters() == {}


def test_a_trial_with_a_bad_parameter_stops_with_one_line(ava, run, monkeypatch):
    import nni

    monkeypatch.setattr(trial, "in_experiment", lambda: True)
    monkeypatch.setattr(nni, "get_next_parameter", lambda: {"learning_rate": 0.1})
    status, _, err = run(arguments(ava))
    assert status == 2
    assert "tuner: unknown parameter 'learning_rate'" in err
    assert not (ava / "run").exists()


def test_a_trial_without_nni_says_so(ava, run, monkeypatch):
    monkeypatch.setattr(trial, "in_experiment", lambda: True)
    monkeypatch.setitem(sys.modules, "nni", None)
    status, _, err = run(arguments(ava))
    assert status == 2
    assert "nni is not installed" in err
