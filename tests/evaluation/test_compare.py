"""compare.py: runs on one test set, their differences, and tables that cannot be compared."""

import json

import numpy as np
import pandas as pd
import pytest
from helpers.data import arguments

import compare as program
from iaa.evaluation import bootstrap
from iaa.evaluation.comparison import (
    Predictions,
    average_metrics,
    compare_groups,
    compute_differences,
    group_by_seed,
    read_predictions,
)
from util import ScorePairs

COMMAND = program
HEADER = "image,true_score,predicted_score\n"


def set_threshold(folder, *thresholds):
    (folder / "run.json").write_text(json.dumps({"result": {"thresholds": thresholds}}))


def table(path, noise, seed, images=300):
    true = np.random.default_rng(0).uniform(0.1, 0.9, images)
    predicted = true + np.random.default_rng(seed).normal(0, noise, images)
    names = [f"{i}.jpg" for i in range(images)]
    path.parent.mkdir(exist_ok=True)
    set_threshold(path.parent, 0.5, 0.5)
    content = {"image": names, "true_score": true, "predicted_score": predicted}
    pd.DataFrame(content).to_csv(path, index=False)
    return path


@pytest.fixture
def runs(tmp_path):
    """Two good predictions and a worse one."""
    noises = {"a": 0.1, "b": 0.1, "c": 0.3}
    return [table(tmp_path / name / "predictions.csv", noise, ord(name)) for name, noise in noises.items()]


def test_the_mean_over_seeds_is_as_sure_as_seeds_and_images_are(runs):
    tested = [read_predictions(path) for path in runs]
    value, interval = average_metrics(tested[:1])["srcc"]
    assert (value, interval) == (tested[0].metrics["srcc"], tested[0].intervals["srcc"])
    value, (low, high) = average_metrics(tested)["srcc"]
    each = np.array([run.metrics["srcc"] for run in tested])
    assert value == pytest.approx(each.mean())
    # Two alike and a worse one: the images' part is small, and Student's t of about two degrees reaches 4.3 errors.
    assert high - value == pytest.approx(value - low)
    assert high - value == pytest.approx(4.3 * each.std(ddof=1) / 3**0.5, rel=0.1)
    assert high - value > np.ptp(tested[0].intervals["srcc"]) / 2


def test_differences_are_told_from_noise(runs, tmp_path, command, monkeypatch):
    monkeypatch.setattr(bootstrap, "RESAMPLES", 2000)
    status, out, _ = command(*runs, "--json", tmp_path / "c.json")
    assert status == 0
    rows = [line for line in out.splitlines() if " − " in line and "| SRCC |" in line]
    assert [row.split("|")[-2].strip() for row in rows] == ["no", "yes", "yes"]
    content = json.loads((tmp_path / "c.json").read_text())
    assert [len(content["runs"]), len(content["pairs"]), content["images"]] == [3, 3, 300]
    plcc = content["pairs"][1]["differences"]["plcc"]
    assert plcc["value"] > 0.1
    assert plcc["p_holm"] >= plcc["p"]
    low, high = plcc["interval"]
    assert 0 < low < plcc["value"] < high
    status, out, _ = command(runs[0].parent)  # alone it has no differences
    assert (status, " − " in out) == (0, False)
    assert "| SRCC | PLCC | KRCC | accuracy | MAE | RMSE |" in out


def set_options(path, seed, **options):
    recipe = {
        "model": "eat_nano",
        "loss": "mse",
        "clip_grad": None,
        "path_to_images": str(path),
        "num_workers": seed,
    }
    (path.parent / "options.json").write_text(json.dumps(recipe | {"seed": seed} | options))


def test_runs_that_differ_by_their_seed_alone_are_compared_by_their_mean(runs, tmp_path, command):
    set_options(runs[0], 0, ema_decay=None)
    set_options(runs[1], 1)
    set_options(runs[2], 2, loss="mse+0.5*plcc")
    status, out, err = command(*runs, "--json", tmp_path / "c.json")
    assert status == 0, err
    a, b, c = (str(path.parent) for path in runs)
    assert out.splitlines()[0] == f"{a}, {b} differ by their seed alone: their mean is compared"
    group, tested = f"{a} (seeds 0, 1)", [read_predictions(path) for path in runs]
    value, (low, high) = average_metrics(tested[:2])["srcc"]
    names = [line.split(" | ")[0] for line in out.splitlines() if line.startswith("| ")]
    assert names[:6] == ["| run", "| ---", f"| {a}", f"| {b}", f"| mean of {group}", f"| {c}"]
    assert f"| mean of {group} | {value:.4f} ({low:.4f} to {high:.4f}) |" in out
    assert {name for name in names if " − " in name} == {f"| {group} − {c}"}
    assert "Welch's t over the seeds" in out
    content = json.loads((tmp_path / "c.json").read_text())
    assert content["means"][0]["runs"] == [a, b]
    assert content["means"][0]["metrics"]["srcc"] == pytest.approx(value)
    assert content["means"][0]["intervals"]["srcc"] == pytest.approx([low, high])
    assert [(pair["first"], pair["second"]) for pair in content["pairs"]] == [(group, c)]


@pytest.mark.parametrize(
    ("options", "record"),
    [
        ({"seed": 0}, {}),
        ({"interest_points": "image"}, {}),
        ({}, {"labels": {"train.csv": {"rows": 9}}}),
        ({}, {"processes": 2}),
    ],
    ids=["one seed", "another setting", "other photographs", "other processes"],
)
def test_other_runs_stay_alone(runs, options, record):
    for seed, path in enumerate(runs[:2]):
        set_options(path, **{"seed": seed} | options if seed else {"seed": 0})
    runs[1].with_name("run.json").write_text(json.dumps({"result": {"thresholds": [0.5, 0.5]}} | record))
    tested = [read_predictions(path) for path in runs]
    assert list(group_by_seed(tested)) == [str(path.parent) for path in runs]


def test_the_metrics_are_those_of_the_run(ava, run, command):
    _, result, _ = run(arguments(ava))
    tested = read_predictions(ava / "run")
    for name in ("srcc", "plcc", "krcc", "accuracy", "mae", "rmse", "emd_r1", "emd_r2"):
        assert tested.metrics[name] == pytest.approx(result[name], rel=1e-5)
    low, high = bootstrap.interval(tested.resampled["srcc"])
    assert result["intervals"]["srcc"] == pytest.approx([low, high])


def test_another_order_of_the_same_images_is_no_difference(runs, tmp_path):
    shuffled = pd.read_csv(runs[0]).sample(frac=1, random_state=0)
    shuffled.to_csv(runs[1], index=False)
    first = read_predictions(runs[0])
    again = read_predictions(runs[1], like=first)
    assert all(
        difference.value == 0 and difference.p == 1
        for name, difference in compute_differences([first], [again]).items()
        if name[:3] != "emd" and name != "krcc"
    )


def change(path, row, column, value):
    frame = pd.read_csv(path, dtype=str)
    frame.loc[row, column] = value
    frame.to_csv(path, index=False)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (
            lambda p: change(p, 7, "image", "other.jpg"),
            "another test set than that of {a}: one of them lacks 7.jpg",
        ),
        (lambda p: change(p, 7, "true_score", "0.99"), "the true score of 7.jpg is 0.99, not"),
        (lambda p: change(p, 7, "image", "8.jpg"), "line 10: image 8.jpg stands there a second time"),
        (lambda p: change(p, 7, "predicted_score", "nan"), "line 9: predicted_score = 'nan': not a number"),
        (lambda p: p.write_text(HEADER + "a.jpg,1,1\n"), "1 row; a comparison needs two images or more"),
        (
            lambda p: p.write_text("image,score\na.jpg,1\n"),
            "no column true_score, predicted_score; found image, score",
        ),
        (lambda p: p.unlink(), "no such file"),
    ],
)
def test_tables_that_cannot_be_compared_are_one_line(runs, command, damage, words):
    damage(runs[1])
    status, out, err = command(*runs[:2])
    assert (status, out, len(err.splitlines())) == (2, "", 1)
    assert err.startswith(f"compare.py: {runs[1]}")
    assert words.format(a=runs[0].parent) in err


def test_the_threshold_is_the_runs_or_must_be_given_and_is_one_for_all(runs, command):
    set_threshold(runs[0].parent, 0.4, 0.5)
    table = pd.read_csv(runs[0])
    agree = (table["predicted_score"] > 0.4) == (table["true_score"] > 0.5)
    assert read_predictions(runs[0]).metrics["accuracy"] == pytest.approx(agree.mean())
    set_threshold(runs[1].parent, 0.4, 0.4)
    (runs[2].parent / "run.json").write_text('{"result": null}')
    for paths, problem in (
        (runs[:2], "the threshold of its true scores is 0.4, that of"),
        (runs[2:], "no run.json beside it says the threshold of high scores; give --threshold"),
    ):
        status, _, err = command(*paths)
        assert (status, problem in err) == (2, True)
        assert command(*paths, "--threshold", 0.3)[0] == 0


def seeds(spread, mean=0.6, count=3, draw=0, images=80):
    """Runs whose noise, and so their SRCC, differs from seed to seed."""
    rng, true, runs = np.random.default_rng(draw), np.random.default_rng(0).normal(size=images), []
    for number in range(count):
        predicted = true + rng.normal(0, max(0.05, mean + rng.normal(0, spread)), images)
        runs.append(
            Predictions(str(number), [], ScorePairs(predicted, true, np.ones(images), true * 0, true * 0))
        )
    return runs


def test_over_seeds_the_interval_holds_what_another_seed_would_change(monkeypatch):
    monkeypatch.setattr(bootstrap, "RESAMPLES", 1000)
    steady = compute_differences(seeds(0, draw=1), seeds(0, draw=2))["srcc"].interval
    moody = compute_differences(seeds(0.3, draw=1), seeds(0.3, draw=2))["srcc"].interval
    assert moody[1] - moody[0] > 1.5 * (steady[1] - steady[0])
    differences = compare_groups({"a": seeds(0.02, 0.2, draw=1), "b": seeds(0.02, 1.5, draw=2)})
    assert differences["a", "b"]["srcc"].p_holm < 0.05


@pytest.mark.slow
def test_settings_that_do_not_differ_are_seldom_called_different():
    """Of 30 tables of five settings with three seeds each, of one and the same network: 5 % are expected."""
    wrong = 0
    for number in range(30):
        groups = {str(k): seeds(0.15, draw=[number, k]) for k in range(5)}
        wrong += any(row["srcc"].p_holm < 0.05 for row in compare_groups(groups).values())
    assert wrong <= 4


def test_a_file_is_not_written_over_and_a_run_is_given_once(runs, command):
    before, again = runs[1].read_bytes(), runs[0].parent / ".." / "a" / "predictions.csv"
    for words, message in (
        ((*runs[:2], "--json", runs[1]), "is there already; give another file"),
        ((runs[0], again), "the same run is given twice"),
    ):
        status, _, err = command(*words)
        assert (status, message in err) == (2, True)
    assert runs[1].read_bytes() == before
