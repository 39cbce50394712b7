"""Real NNI experiments, from `nnictl create` to the results read back."""

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
from helpers.data import arguments
from helpers.runs import ROOT, SMALL_RUN

import option
from iaa.searching import nni_trial
from iaa.searching.results import read_json_object, read_results
from util import METRICS

pytest.importorskip("nni")


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Experiment:
    """A real one, of runs on a small AVA, with its home in the test's folder."""

    def __init__(self, ava, **config):
        self.ava, self.port, home = ava, free_port(), ava / "home"
        home.mkdir()
        self.environment = os.environ | {
            "HOME": str(home),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }
        self.config = {
            "experimentName": "test",
            "searchSpaceFile": str(ROOT / "config_search.json"),
            "trialCodeDirectory": str(ROOT),
            "trialConcurrency": 1,
            "maxTrialNumber": 2,
            "experimentWorkingDirectory": str(ava / "nni"),
            "tuner": {"name": "Random", "classArgs": {"seed": 2}},
            "trainingService": {"platform": "local"},
        } | config

    def start(self, **options):
        words = arguments(self.ava, experiment_dir_name=self.ava / "trials", batch_size=None, **options)
        self.config["trialCommand"] = " ".join([sys.executable, str(SMALL_RUN), *words])
        (self.ava / "config.yml").write_text(json.dumps(self.config))  # JSON is YAML
        for attempt in range(4):
            try:
                self.nnictl("create", "--config", str(self.ava / "config.yml"), "--port", str(self.port))
                break
            except AssertionError as error:  # NNI gives its own server five seconds, also on a busy machine
                if attempt == 3 or "check-status" not in str(error):
                    raise
                self.nnictl("stop", "--all")
                self.port = free_port()
        self.id = self.ask("experiment")["id"]

    def nnictl(self, *words):
        command = [sys.executable, "-m", "nni.tools.nnictl.nnictl", *words]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr

    def ask(self, path):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/api/v1/nni/{path}", timeout=10) as reply:
            return json.load(reply)

    def statuses(self):
        return {job["trialJobId"]: job["status"] for job in self.ask("trial-jobs")}

    def wait(self, condition, seconds=240):
        deadline = time.time() + seconds
        while not (value := condition()):
            assert time.time() < deadline, self.statuses()
            time.sleep(0.2)
        return value

    def folders(self):
        return {path.name: path for path in (self.ava / "trials" / self.id).glob("*")}


@pytest.fixture
def make_experiment(ava):
    """Make an Experiment; it is stopped when the test is over."""
    made = []

    def make(**config):
        made.append(Experiment(ava, **config))
        return made[-1]

    yield make
    for experiment in made:
        experiment.nnictl("stop", "--all")


@pytest.mark.slow
def test_trials_of_a_real_experiment_of_which_one_fails(ava, make_experiment):
    """The released space with a loss that there is not: the second of the two draws has it."""
    space = json.loads((ROOT / "config_search.json").read_text())
    space["loss"] = {"_type": "choice", "_value": ["emd", "no such loss"]}
    (ava / "space.json").write_text(json.dumps(space))
    experiment = make_experiment(searchSpaceFile=str(ava / "space.json"))
    experiment.start(num_epoch=2)
    experiment.wait(lambda: sorted(experiment.statuses().values()) == ["FAILED", "SUCCEEDED"])
    reports = experiment.ask("metric-data")
    jobs = {job["trialJobId"]: job for job in experiment.ask("trial-jobs")}
    trials, _ = read_results(ava / "trials" / experiment.id)
    assert {result.name for result in trials} == set(jobs)
    assert sorted(result.status for result in trials) == ["done", "failed"]
    for result in trials:
        folder = experiment.folders()[result.name]
        drawn = json.loads(jobs[result.name]["hyperParameters"][0])["parameters"]
        mine = [report for report in reports if report["trialJobId"] == result.name]
        if result.status == "failed":
            assert drawn["loss"] == "no such loss"
            assert "tuner: loss = 'no such loss': choose from emd" in result.reason
            assert mine == []
            continue
        used = json.loads((folder / "options.json").read_text())
        assert drawn["batch_size"] in (16, 24, 32)
        assert {name: used[name] for name in drawn} == drawn
        epochs = [json.loads(json.loads(r["data"])) for r in mine if r["type"] == "PERIODICAL"]
        final = [json.loads(json.loads(r["data"])) for r in mine if r["type"] == "FINAL"]
        rows = pd.read_csv(folder / "metrics.csv")
        metrics = [name for name in rows if name.startswith("val_")]
        assert len(metrics) == len(METRICS) + 1
        for report, row in zip(epochs, rows.to_dict("records"), strict=True):
            assert [report[name] for name in metrics] == pytest.approx([row[name] for name in metrics])
            assert (report["default"], report["vsrcc"]) == (row["val_accuracy"], row["val_srcc"])
        assert final == [max(epochs, key=lambda report: report["vsrcc"])]
    logs = [path.read_text() for path in (ava / "nni").rglob("trial.stderr")]
    assert sum("tuner: loss = 'no such loss'" in text for text in logs) == 1


@pytest.mark.slow
def test_a_stopped_experiment_saves_its_trials_and_goes_on_with_them(make_experiment):
    """With TPE and Medianstop."""
    experiment = make_experiment(
        maxTrialNumber=1,
        tuner={"name": "TPE", "classArgs": {"optimize_mode": "maximize"}},
        assessor={"name": "Medianstop", "classArgs": {"optimize_mode": "maximize"}},
    )
    experiment.start(num_epoch=40, search_metric="plcc")
    name, folder = experiment.wait(lambda: list(experiment.folders().items()))[0]
    experiment.wait((folder / "metrics.csv").is_file)
    experiment.nnictl("stop", "--all")
    run = experiment.wait(lambda: (r := read_json_object(folder / "run.json"))["status"] != "running" and r)
    assert (run["status"], run["reason"]) == ("stopped", "SIGINT")
    before = pd.read_csv(folder / "metrics.csv")
    assert (folder / "checkpoints" / "last.pt").is_file()
    assert [(t.name, t.status) for t in read_results(folder.parent)[0]] == [(name, "stopped")]

    experiment.nnictl("resume", experiment.id, "--port", str(experiment.port))
    experiment.wait(lambda: experiment.statuses() == {name: "SUCCEEDED"})
    after = pd.read_csv(folder / "metrics.csv")
    assert len(after) == 40
    pd.testing.assert_frame_equal(after[: len(before)], before, check_exact=True)
    (best,), metric = read_results(folder.parent)
    assert (best.status, metric) == ("done", "plcc")


def test_space_and_experiment_are_the_released_ones():
    space = json.loads((ROOT / "config_search.json").read_text())
    assert space["batch_size"] == {"_type": "choice", "_value": [16, 24, 32]}
    assert space["init_lr"] == {"_type": "choice", "_value": [1e-5, 1e-6]}
    for name, values in space.items():
        for value in values["_value"]:
            assert option.check_tuned({name: value}) == {name: value}
    experiment = (ROOT / "config.yml").read_text()
    assert "searchSpaceFile: config_search.json" in experiment
    assert "python main_nni.py" in experiment


def test_outside_an_experiment_nothing_is_asked_of_nni(monkeypatch):
    monkeypatch.delenv("NNI_TRIAL_JOB_ID", raising=False)
    assert not nni_trial.in_experiment()
    assert nni_trial.get_parameters({}) == {}


@pytest.fixture
def in_experiment(monkeypatch):
    """As if NNI had started this process."""
    monkeypatch.setattr(nni_trial, "in_experiment", lambda: True)
    monkeypatch.setattr(nni_trial, "end_with_parent", lambda: None)
    monkeypatch.setenv("NNI_TRIAL_JOB_ID", "t1")
    monkeypatch.setenv("NNI_EXP_ID", "e1")


def test_a_trial_with_a_bad_parameter_stops_with_one_line(ava, run, monkeypatch, in_experiment):
    import nni

    monkeypatch.setattr(nni, "get_next_parameter", lambda: {"learning_rate": 0.1})
    status, _, err = run(arguments(ava))
    assert status == 2
    assert len(err.splitlines()) == 1
    assert "tuner: unknown parameter 'learning_rate'" in err
    ended = json.loads((ava / "run" / "e1" / "t1" / "run.json").read_text())
    assert ended["status"] == "failed"
    assert "unknown parameter 'learning_rate'" in ended["reason"]


def test_a_report_that_nni_does_not_take_does_not_end_the_trial(ava, run, monkeypatch, in_experiment, caplog):
    import nni

    def refuse(_):
        raise ConnectionError

    monkeypatch.setattr(nni, "get_next_parameter", lambda: {"init_lr": 1e-4})
    monkeypatch.setattr(nni, "get_current_parameter", lambda: {"init_lr": 1e-4})
    monkeypatch.setattr(nni, "report_intermediate_result", refuse)
    monkeypatch.setattr(nni, "report_final_result", refuse)
    status, _, err = run(arguments(ava))
    assert status == 0, err
    assert caplog.text.count("NNI has not taken a report (ConnectionError)") == 2
