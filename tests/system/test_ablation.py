"""The ablation: trains what is missing, measures the batch spread, writes its tables."""

import itertools
import json
import os
import re
import signal
import time

import pandas as pd
import pytest
from helpers.data import arguments
from helpers.processes import ended, fork
from helpers.runs import SMALL_RUN

import models
from benchmarks import ablation, throughput
from iaa.errors import InputError
from option import OPTIONS


def command(folder, *settings):
    words = arguments(folder, experiment_dir_name=None, init_lr=1e-3)
    return ["--settings", *settings, "--seeds", "0", "--out", str(folder / "out"), "--", *words]


@pytest.fixture
def in_process(run, monkeypatch):
    """The runs are made in this process, sooner than new interpreters would start."""

    def train(folder, words):
        status, result, err = run(["--experiment_dir_name", folder, *words])
        assert status == 0, err
        return result

    monkeypatch.setattr(ablation, "train", train)


@pytest.mark.slow
def test_one_command_trains_measures_and_goes_on_where_it_stopped(ava, in_process, capsys):
    out = ava / "out"
    assert ablation.main(command(ava, "batch")) == 0
    first = (out / "batch-seed0" / "predictions.csv").stat().st_mtime_ns
    # Killed after training, before its result was written: it goes on from last.pt, and so to the same result.
    (out / "batch-seed0" / "result.json").rename(out / "saved.json")
    capsys.readouterr()
    assert ablation.main(command(ava, "batch", "interest_points=image,refinement=off")) == 0
    again = (out / "batch-seed0" / "predictions.csv").stat().st_mtime_ns
    assert again > first
    rows = [
        json.loads(path.read_text()) for path in (out / "saved.json", out / "batch-seed0" / "result.json")
    ]
    for row in rows:
        assert row.pop("seconds") > 0
    assert rows[0] == rows[1]
    runs = pd.read_csv(out / "runs.csv").set_index("setting")
    assert runs.loc["batch", "spread_mean"] > 0.01
    assert runs.loc["interest_points=image,refinement=off", "spread_max"] < 1e-5
    table = pd.read_csv(out / "table.csv")
    assert table["srcc_mean"].tolist() == runs["srcc"].tolist()
    assert "| batch |" in capsys.readouterr().out
    cells = (out / "table.md").read_text().splitlines()[2].split(" | ")
    model = models.create_model("eat_test")
    assert cells[1] == f"{sum(p.numel() for p in model.parameters()) / 1e6:.3g}"
    assert cells[2] == f"{throughput.count_forward_gflop(model):.3g}"
    assert float(cells[3]) < float(cells[4])  # images/s, training and evaluation
    low, high = map(float, re.search(r"\((\S+) to (\S+)\)", cells[5]).groups())
    assert low <= round(runs.loc["batch", "srcc"], 3) <= high
    differences = (out / "differences.md").read_text()
    assert "| batch − interest_points=image,refinement=off | SRCC |" in differences
    assert (
        "The intervals of a setting with one seed contain the noise of images, not that of seeds."
        in differences
    )
    assert (out / "ablation.png").read_bytes().startswith(b"\x89PNG")
    assert ablation.main(command(ava, "batch")) == 0
    assert (out / "batch-seed0" / "predictions.csv").stat().st_mtime_ns == again
    assert ablation.main([*command(ava, "batch"), "--num_epoch", "2"]) == 2
    assert "give another --out" in capsys.readouterr().err


def test_the_papers_preset_goes_from_plain_dat_to_eat_and_other_networks_stand_beside(tmp_path, monkeypatch):
    settings = []

    def run_all(parsed, *_):
        settings.extend(parsed)
        raise InputError("enough")

    monkeypatch.setattr(ablation, "run_all", run_all)
    model = "timm/resnet18,path_to_model_weight=weights/a.pth"
    assert ablation.main(["--preset", "paper", "--models", model, "--out", str(tmp_path)]) == 2
    assert [name for name, _ in settings[:3]] == ["dat", "points", "eat"]
    changes = [set(b.items()) - set(a.items()) for (_, a), (_, b) in itertools.pairwise(settings[:3])]
    assert changes == [{("interest_points", "batch")}, {("refinement", "released")}]
    for _, options in settings[:-1]:
        assert all(value in OPTIONS[name].choices for name, value in options.items())
    options = {"model": "timm/resnet18", "path_to_model_weight": "weights/a.pth"}
    assert settings[-1] == ("timm_resnet18,path_to_model_weight=weights_a.pth", options)


@pytest.mark.parametrize("setting", ["median", "interest_points", "no_such_option=1"])
def test_an_unknown_setting_is_refused(ava, capsys, setting):
    assert ablation.main(command(ava, setting)) == 2
    assert f"--settings {setting}: neither one of" in capsys.readouterr().err
    assert not (ava / "out").exists()


def test_a_run_that_fails_is_named(ava, capsys, monkeypatch):
    monkeypatch.setattr(ablation, "ROOT", ava)
    (ava / "main_nni.py").write_text("raise SystemExit('no memory\\nmain_nni.py: train.csv: no such file')")
    assert ablation.main(command(ava, "batch")) == 1
    error = capsys.readouterr().err
    assert f"main_nni.py --experiment_dir_name {ava / 'out' / 'batch-seed0'} --overwrite" in error
    assert error.endswith("; main_nni.py: train.csv: no such file\n")


@pytest.mark.slow
def test_interrupted_it_lets_the_run_save_and_goes_on_with_it(ava, monkeypatch):
    monkeypatch.setattr(ablation, "ROOT", ava)
    (ava / "main_nni.py").symlink_to(SMALL_RUN)
    words = [*map(str, command(ava, "batch")), "--num_epoch", "500"]
    log = ava / "out" / "batch-seed0" / "train.log"

    def work():
        signal.signal(signal.SIGINT, ablation.raise_interrupted)
        return ablation.main(words)

    child = fork(work, ava / "errors")
    while not (log.is_file() and "epoch 2/500" in log.read_text()):
        time.sleep(0.05)
    os.killpg(child, signal.SIGINT)
    assert ended(child) == 130
    assert "ablation: stopped by SIGINT; the same command goes on" in (ava / "errors").read_text()
    assert "stopped by SIGTERM; --resume" in log.read_text()
    assert (ava / "out" / "batch-seed0" / "checkpoints" / "last.pt").is_file()
