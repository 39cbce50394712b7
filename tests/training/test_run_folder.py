"""A run's folder belongs to one living process."""

import argparse
import json
import multiprocessing
import os
import socket

import pandas as pd
import pytest
from helpers.data import arguments
from helpers.processes import ended, fork
from helpers.runs import metrics

from iaa.errors import InputError
from iaa.runtime import liveness
from iaa.training import run_folder


def write_run(folder, **notes):
    folder.mkdir(exist_ok=True)
    (folder / "run.json").write_text(json.dumps({"status": "running", **notes}))


def files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("how", [{"overwrite": True}, {"resume": True}])
def test_a_living_run_is_neither_replaced_nor_resumed(ava, run, ran, how):
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        pid = pool.apply(os.getpid)
        write_run(
            ava / "run",
            host=socket.gethostname(),
            pid=pid,
            pid_started=liveness.process_start_time(pid),
            processes=1,
        )
        before = files(ava / "run")
        status, _, err = run(arguments(ava, **how))
        assert status == 2
        place = f"{ava / 'run'}: process {pid} on {socket.gethostname()} runs in it; wait until it ends"
        assert err.splitlines() == [f"main_nni.py: {place}, or give another folder"]
        assert files(ava / "run") == before
    assert run(arguments(ava, **how))[0] == 0


@pytest.mark.parametrize(
    "host", ["elsewhere", socket.gethostname()]
)  # another container may have this host's name
def test_a_run_on_another_machine_lives_as_long_as_it_gives_signs_of_life(tmp_path, host):
    write_run(tmp_path, host=host, pid=1, pid_started="1", pid_space="pid:[1]")
    for age, alive in ((200, True), (400, False)):
        (tmp_path / ".lock").touch()
        time = (tmp_path / ".lock").stat().st_mtime - age
        os.utime(tmp_path / "run.json", (time, time))
        assert (f"process 1 on {host}" in liveness.describe_owner(tmp_path)) == alive


def test_one_of_several_starts_at_the_same_moment_gets_the_folder(tmp_path):
    options = argparse.Namespace(experiment_dir_name=str(tmp_path / "run"), overwrite=True, resume=False)
    options.dataset, options.model, options.eval = "ava", "eat_test", False
    start = multiprocessing.get_context("fork").Event()
    last = multiprocessing.get_context("fork").Event()

    def work():
        start.wait(20)
        try:
            run_folder.open_folder(options, {}, None)
        except InputError as error:
            print(error)
            return 2
        last.wait(20)
        return 0

    children = [fork(work, tmp_path / str(number)) for number in range(4)]
    start.set()
    losers = [os.waitpid(-1, 0) for _ in children[1:]]
    assert [os.waitstatus_to_exitcode(status) for _, status in losers] == [2, 2, 2]
    last.set()
    (winner,) = set(children) - {pid for pid, _ in losers}
    assert ended(winner) == 0
    assert json.loads((tmp_path / "run" / "run.json").read_text())["pid"] == winner


def test_run_json_says_how_far_the_run_is_and_is_its_sign_of_life(ava, run, monkeypatch):
    written, write_json = [], run_folder.write_json

    def note(path, content):
        written.append((path.name, content))
        write_json(path, content)

    monkeypatch.setattr(run_folder, "BEAT", 0.01)
    monkeypatch.setattr(run_folder, "write_json", note)
    assert run(arguments(ava, num_epoch=2))[0] == 0
    beats = [content for name, content in written if name == "run.json"]
    assert any(content.get("epoch") == 1 for content in beats)
    assert (beats[-1]["status"], beats[-1]["epoch"], beats[-1]["step"]) == ("done", 2, 0)


def resume(run, ava, *words):
    folders = ("--path_to_save_csv", ava, "--path_to_images", ava / "images")
    return run(["--resume", "--experiment_dir_name", ava / "run", *folders, *words])


@pytest.mark.parametrize(
    ("name", "change", "difference"),
    [
        ("train.csv", lambda table: table[:-10], "10 rows fewer"),
        (
            "val.csv",
            lambda table: pd.concat([table, table.assign(image_id=table["image_id"] - 6)]),
            "6 rows more",
        ),
        ("test.csv", lambda table: table[::-1], "other images or order"),
        ("train.csv", lambda table: table.assign(score2=99), "other scores"),
    ],
)
def test_resume_refuses_other_labels_by_name(ava, run, ran, name, change, difference):
    before = files(ava / "run")
    change(pd.read_csv(ava / name)).to_csv(ava / name, index=False)
    status, _, err = resume(run, ava)
    problem = f"--resume: {name} is not the run's: {difference}; restore it, or start a new run"
    assert (status, err.splitlines()) == (2, [f"main_nni.py: {problem}"])
    assert files(ava / "run") == before


def test_resume_refuses_labels_that_are_split_otherwise(ava, run, ran):
    (ava / "val.csv").unlink()
    assert "val.csv is not the run's: 6 rows fewer" in resume(run, ava)[2]


def test_a_run_may_be_made_longer_if_its_epochs_do_not_depend_on_the_end(ava, run, ran, trained):
    status, longer, err = resume(run, ava, "--num_epoch", 2)
    assert status == 0, err
    assert metrics(longer) == metrics(trained(num_epoch=2))
    path = ava / "run" / "options.json"
    saved = json.loads(path.read_text())
    assert saved["num_epoch"] == 2
    for change, reason in (
        ({"schedule": "cosine"}, "--schedule cosine depends on the end; start a new run"),
        ({"refinement": "scheduled"}, "--refinement scheduled depends on the end; start a new run"),
        ({"num_epoch": 4}, "start a new run"),
    ):
        path.write_text(json.dumps(saved | change))
        status, _, err = resume(run, ava, "--num_epoch", 3)
        epochs = change.get("num_epoch", 2)
        assert (status, f"--num_epoch 3 differs from the run's {epochs}; {reason}" in err) == (2, True), err
