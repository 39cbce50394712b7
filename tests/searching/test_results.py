"""Trials as main_nni.py runs them, and their results: tables, the best options."""

import json
import os
import signal
import subprocess
import sys

import pandas as pd
import pytest
from helpers import main_with_eat_test
from helpers.data import arguments
from helpers.runs import table as metrics_table
from helpers.searches import SPACE, epochs_of, read_all, wait_for, words

import main_nni
import option
import search
from iaa import experiment
from iaa.searching import nni_trial, optuna_search

COMMAND = search  # of the fixture `command`


@pytest.mark.slow
def test_a_real_search_from_the_first_trial_to_the_best_one_again(ava, command, run, monkeypatch, caplog):
    assert optuna_search.MAIN.samefile(main_nni.__file__)
    monkeypatch.setattr(optuna_search, "MAIN", main_with_eat_test.__file__)
    unused = {"_type": "uniform", "_value": [0.1, 0.9]}  # without --refinement scheduled
    space = SPACE | {"refinement": {"_type": "choice", "_value": ["off"]}, "explore_share": unused}
    (ava / "space.json").write_text(json.dumps(space))
    rest = arguments(ava, experiment_dir_name=None, batch_size=None, num_epoch=2)
    with caplog.at_level("INFO", "eat"):
        status, out, err = command(*words(ava, 2, concurrency=2, metric="emd")[:-2], *rest)
    assert status == 0, err
    assert caplog.text.count("refinement off") == 2
    assert "explore_share" not in caplog.text
    rows = [line.split() for line in out.splitlines()]
    assert [row[rows[0].index("explore_share")] for row in rows[1:]] == ["-", "-"]
    best, other = read_all(ava)
    assert (best.status, other.status) == ("done", "done")
    assert best.value == pytest.approx(-metrics_table(best.folder)["val_emd_r1"][best.best_epoch - 1])
    status, out, _ = command("best", ava / "s", "--out", ava / "best.json")
    assert status == 0
    assert f"trial {best.name}, emd {best.value:.4f}" in out
    assert "explore_share" not in json.loads((ava / "best.json").read_text())
    status, _, err = run(["--options", ava / "best.json", "--experiment_dir_name", ava / "again"])
    assert status == 0, err
    pd.testing.assert_frame_equal(metrics_table(ava / "again"), metrics_table(best.folder), check_exact=True)


@pytest.mark.slow
def test_a_trial_whose_parent_is_killed_saves_and_ends(ava):
    rest = arguments(ava, experiment_dir_name=None, num_epoch=500)
    as_trial = os.environ | {
        nni_trial.TRIAL_VARIABLE: json.dumps(
            {"parameters": {"init_lr": 1e-3}, "folder": str(ava / "s" / "t")}
        )
    }
    start = f"import subprocess, sys; subprocess.run([sys.executable, {main_with_eat_test.__file__!r}, *sys.argv[1:]])"
    with subprocess.Popen(
        [sys.executable, "-c", start, *rest], env=as_trial, stderr=subprocess.DEVNULL
    ) as parent:
        wait_for(lambda: epochs_of(ava / "s" / "t") > 0)
        parent.kill()
    wait_for(lambda: read_all(ava)[0].status != "running")
    assert (read_all(ava)[0].status, read_all(ava)[0].reason) == ("stopped", "SIGTERM")
    assert (ava / "s" / "t" / "checkpoints" / "last.pt").is_file()
    assert epochs_of(ava / "s" / "t") < 500


def as_a_trial(ava, monkeypatch, **point):
    """From here on this process is a trial of a search."""
    monkeypatch.setenv(nni_trial.TRIAL_VARIABLE, json.dumps({"parameters": point, "folder": str(ava / "t")}))
    monkeypatch.setattr(nni_trial, "end_with_parent", lambda: None)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["last.pt", "previous.pt"])
def test_a_trial_goes_on_from_its_checkpoint(ava, run, monkeypatch, name):
    """previous.pt: the trial was killed between the two renames of a save."""
    as_a_trial(ava, monkeypatch, init_lr=1e-3)
    rest = arguments(ava, experiment_dir_name=None, num_epoch=3)
    with monkeypatch.context() as patch:
        patch.setattr(nni_trial, "report_end", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
        assert run(rest)[0] == 143
    before = (ava / "t" / "metrics.csv").read_bytes()
    (ava / "t" / "checkpoints" / "last.pt").rename(ava / "t" / "checkpoints" / name)
    status, _, err = run(rest)
    assert status == 0, err
    assert (ava / "t" / "metrics.csv").read_bytes() == before
    assert json.loads((ava / "t" / "run.json").read_text())["parameters"] == {"init_lr": 1e-3}


def test_a_trial_leaves_out_what_has_no_meaning_beside_what_it_draws(ava, monkeypatch, command):
    drawn = {"refinement": "off", "explore_share": 0.3, "schedule": "step", "decay_every": 2}
    as_a_trial(ava, monkeypatch, **drawn)
    merged = nni_trial.add_parameters({"dataset": "ava", "path_to_images": "x", "path_to_save_csv": "y"})
    option.complete_network(option.complete(merged), merged, {})
    used = drawn | {"explore_share": None}
    assert nni_trial.get_parameters({"dataset": "ava"}) == used
    for name, parameters in (("a", used), ("b", {"explore_share": None})):
        (ava / "s" / name).mkdir(parents=True)
        (ava / "s" / name / "run.json").write_text(json.dumps({"parameters": parameters}))
    rows = [line.split() for line in command("show", ava / "s")[1].splitlines()]
    column = rows[0].index("explore_share")
    assert [row[column] for row in rows[1:]] == ["-", "-"]


def test_a_trial_whose_folder_another_process_has_waits_and_leaves_it_alone(ava, run, monkeypatch):
    as_a_trial(ava, monkeypatch, init_lr=1e-3)
    monkeypatch.setattr(experiment, "TRIALS_WAIT", 0.1)
    (ava / "t").mkdir()
    text = json.dumps({"status": "running", "host": "elsewhere", "pid": 1})
    (ava / "t" / "run.json").write_text(text)
    status, _, err = run(arguments(ava, experiment_dir_name=None))
    assert status == 2
    assert "process 1 on elsewhere" in err
    assert (ava / "t" / "run.json").read_text() == text


def test_a_run_that_was_killed_is_lost(ava, run):
    run(arguments(ava, experiment_dir_name=ava / "s" / "r"))
    path = ava / "s" / "r" / "run.json"
    with subprocess.Popen(["true"]) as ended:
        pass
    path.write_text(json.dumps(json.loads(path.read_text()) | {"status": "running", "pid": ended.pid}))
    assert [result.status for result in read_all(ava)] == ["lost"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["show", "nowhere"], "nowhere: neither a folder of runs nor an experiment"),
        (["show", "EMPTY"], "no runs in it"),
        (["best", "FAILED"], "no trial has ended well yet"),
        (["run", "--trials", "0", "--out", "x"], "--trials 0 must be at least 1"),
        (["run", "--trials", "1", "--out", "x", "--space", "nowhere.json"], "nowhere.json: cannot be read"),
        (["run", "--trials", "1", "--out", "x", "--seed", "-1"], "--seed -1 must be at least 0"),
        (["best", "ODD", "--metric", "plcc"], "no trial has ended well yet"),
    ],
)
def test_requests_that_cannot_be_answered_end_in_one_line(tmp_path, command, line, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "failed" / "a").mkdir(parents=True)
    (tmp_path / "failed" / "a" / "run.json").write_text('{"status": "failed", "reason": "no"}')
    (tmp_path / "odd" / "a").mkdir(parents=True)
    (tmp_path / "odd" / "a" / "run.json").write_text('{"status": "done"}')
    (tmp_path / "odd" / "a" / "options.json").write_text('{"x": 1}')
    (tmp_path / "odd" / "a" / "metrics.csv").write_text("a,b\n1,2\n")
    folders = {"ODD": tmp_path / "odd", "EMPTY": tmp_path / "empty", "FAILED": tmp_path / "failed"}
    status, _, err = command(*(folders.get(word, word) for word in line))
    assert status == 2
    assert len(err.splitlines()) == 1
    assert message in err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read as options"),
        ("[1]", "must be a JSON object"),
        ('{"learning_rate": 1}', "unknown option 'learning_rate'"),
        ('{"init_lr": "high"}', "init_lr = 'high' is not a number"),
    ],
)
def test_bad_options_files_are_named(ava, run, content, message):
    (ava / "o.json").write_text(content)
    status, _, err = run(["--options", ava / "o.json"])
    assert status == 2
    assert f"{ava / 'o.json'}: " in err
    assert message in err


@pytest.mark.slow
def test_the_command_line_comes_over_an_options_file(ava, run):
    words = arguments(ava)
    options = dict(zip([word[2:] for word in words[::2]], words[1::2], strict=True))
    numbers = {"batch_size": 3, "num_epoch": 1, "num_workers": 0}
    (ava / "o.json").write_text(json.dumps(options | numbers))
    status, _, err = run(["--options", ava / "o.json", "--batch_size", 2])
    assert status == 0, err
    used = json.loads((ava / "run" / "options.json").read_text())
    assert (used["batch_size"], used["model"]) == (2, "eat_test")


def test_emd_is_no_metric_of_single_scores(scored, run):
    status, _, err = run(arguments(scored, "tad66k", search_metric="emd"))
    assert status == 2
    assert "--search_metric emd needs vote distributions" in err


def test_undefined_correlations_are_the_worst():
    row = {"val_srcc": float("nan"), "val_plcc": 0.5, "val_accuracy": 0.7, "val_emd_r1": 0.2, "val_loss": 1.0}
    values = [nni_trial.read_metric(row, name) for name in ("srcc", "plcc", "accuracy", "emd")]
    assert values == [-1.0, 0.5, 0.7, -0.2]
