"""The search without NNI: spaces, trials that come and go, tables, the best options."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest
from helpers.searches import SPACE, epochs_of, in_background, read_all, wait_for, words
from optuna.exceptions import StorageInternalError

import option
import search
from iaa.searching import optuna_search, space

ROOT = Path(__file__).parents[2]
COMMAND = search  # of the fixture `command`

# Stands in for main_nni.py: an epoch in a twentieth of a second, better the nearer init_lr is to 1e-3.
FAKE = """
    import json, math, os, pathlib, signal, sys, time
    trial = json.loads(os.environ["EAT_TRIAL"])
    folder, parameters = pathlib.Path(trial["folder"]), trial["parameters"]
    folder.mkdir(exist_ok=True)
    print("started", os.getpid(), file=sys.stderr)
    words = sys.argv[1:]
    epochs = int(words[words.index("--num_epoch") + 1])
    parent = os.getppid()
    (folder / "options.json").write_text(json.dumps(
        {"select_by": "accuracy", "num_epoch": epochs, "dataset": "ava", "search_metric": "accuracy", **parameters}))
    run = {"parameters": parameters, "status": "running", "pid": os.getpid(), "host": os.uname().nodename}
    def end(status):
        (folder / "run.json").write_text(json.dumps(run | {"status": status}))
    def stop(*_):
        end("stopped")
        sys.exit(143)
    signal.signal(signal.SIGTERM, stop)
    end("running")
    if "--fail" in words and parameters["init_lr"] > 1e-4:
        end("failed")
        sys.exit("the learning rate is too high")
    path = folder / "metrics.csv"
    lines = path.read_text().splitlines() if path.exists() else ["epoch,val_accuracy,val_loss,val_srcc,seconds"]
    for epoch in range(len(lines), epochs + 1):
        time.sleep(0.05)
        if os.getppid() != parent:
            stop()
        score = 1 / (1 + abs(math.log10(parameters["init_lr"]) + 3)) * epoch / epochs
        lines.append(f"{epoch},{score},0,0,0.05")
        temporary = folder / f"metrics.{os.getpid()}.tmp"
        temporary.write_text("\\n".join(lines) + "\\n")
        temporary.replace(path)
    end("done")
"""


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """The fake main_nni.py in the place of the real one, and the space as a file."""
    (tmp_path / "fake.py").write_text(textwrap.dedent(FAKE))
    (tmp_path / "space.json").write_text(json.dumps(SPACE))
    monkeypatch.setattr(optuna_search, "MAIN", tmp_path / "fake.py")
    monkeypatch.setattr(optuna_search, "POLL_SECONDS", 0.02)
    monkeypatch.setattr("logging.basicConfig", lambda **_: None)
    monkeypatch.setattr(search, "parse_options", lambda w: {"dataset": "demo", "num_epoch": int(w[1])})
    return tmp_path


@pytest.mark.parametrize("line", [["show", "RUNS"], ["best", "RUNS"]])
def test_only_a_search_imports_slow_packages(tmp_path, line):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "options.json").write_text('{"dataset": "ava"}')
    (tmp_path / "a" / "run.json").write_text('{"status": "done"}')
    (tmp_path / "a" / "metrics.csv").write_text("epoch,val_accuracy,val_loss,val_srcc\n1,0.5,0.1,0.2\n")
    code = (
        "import atexit, sys, search; atexit.register(lambda: print(*sys.modules)); search.main(sys.argv[1:])"
    )
    line = [str(tmp_path) if word == "RUNS" else word for word in line]
    run = subprocess.run([sys.executable, "-c", code, *line], cwd=ROOT, capture_output=True, text=True)
    imported = set(run.stdout.split())
    assert "search" in imported
    assert not imported & {"torch", "numpy", "pandas", "matplotlib", "scipy", "timm", "PIL", "optuna", "nni"}


# Spaces


@pytest.mark.parametrize("name", ["config_search.json", "configs/config_search_wide.json"])
def test_the_spaces_that_are_shipped_can_be_drawn_from(name):
    import optuna

    shipped = space.read_space(ROOT / name)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(0))
    for _ in range(50):
        point = space.suggest(study.ask(), shipped)
        assert option.check_tuned(point) == point
        option.complete({"dataset": "ava", "path_to_images": "x", "path_to_save_csv": "y", **point})


@pytest.mark.parametrize(
    ("name", "entry", "message"),
    [
        ("learning_rate", ["choice", [1]], "unknown parameter 'learning_rate'"),
        ("init_lr", ["choice", [0.1, -1]], "init_lr = -1 must be greater than 0"),
        ("init_lr", ["uniform", [-0.1, 1]], "init_lr = -0.1 must be greater than 0"),
        ("drop_path_rate", ["uniform", [0, 1]], "drop_path_rate = 1 must be between 0 and 0.9"),
        ("batch_size", ["uniform", [1, 8]], "batch_size is a whole number"),
        ("batch_size", ["randint", [1.5, 8]], "batch_size = 1.5 is not a whole number"),
        ("batch_size", ["randint", [0, 8]], "batch_size = 0 must be at least 1"),
        ("loss", ["choice", ["emd", "l1"]], "loss = 'l1': choose from"),
        ("model", ["choice", ["timm/test_vit", "timm/test_vti"]], "nearest are test_vit, "),
        ("init_lr", ["loguniform", [0, 1]], "_value must be [lowest, highest], above 0"),
        ("init_lr", ["uniform", [1, 0.1]], "_value must be [lowest, highest]"),
        ("init_lr", ["uniform", [1]], "_value must be [lowest, highest]"),
        ("init_lr", ["quniform", [0.1, 1, 0.1]], "_type must be one of choice, randint, uniform, loguniform"),
        ("init_lr", [["choice"], [1]], "_type must be one of choice"),
        ("init_lr", 0.1, "_type must be one of choice"),
        ("init_lr", ["choice", None], "_value must be a list of values"),
        ("init_lr", ["choice", []], "_value must be a list of values"),
        (None, {}, "no search space"),
        (None, [], "must be a JSON object"),
    ],
)
def test_a_space_out_of_range_is_refused_before_anything_is_trained(tmp_path, command, name, entry, message):
    if name and isinstance(entry, list):
        entry = dict(zip(("_type", "_value"), entry, strict=True))
    (tmp_path / "space.json").write_text(json.dumps({name: entry} if name else entry))
    status, _, err = command(*words(tmp_path, 1))
    assert status == 2
    assert len(err.splitlines()) == 1
    assert message in err
    assert not (tmp_path / "s").exists()


# Trials, by the fake


@pytest.mark.slow
def test_all_trials_are_accounted_for_and_the_best_comes_first(fake, command):
    status, out, err = command(*words(fake, 6, concurrency=3, seed=1))
    assert (status, err) == (0, "")
    assert [result.status for result in read_all(fake)] == ["done"] * 6
    values = [result.value for result in read_all(fake)]
    assert values == sorted(values, reverse=True)
    header, first, *others = out.splitlines()
    columns = "trial accuracy status epochs best time init_lr batch_size folder"
    assert sorted(header.split()) == sorted(columns.split())
    assert first.split()[1] == f"{values[0]:.4f}"
    assert len(others) == 5
    assert command(*words(fake, 6, concurrency=3, seed=1))[0] == 0
    assert len(read_all(fake)) == 6  # there were enough


@pytest.mark.slow
def test_tpe_learns(fake, command):
    command(*words(fake, 24, seed=0, epochs=1))
    names = sorted(result.name for result in read_all(fake))
    values = {result.name: result.value for result in read_all(fake)}
    early, late = ([values[name] for name in part] for part in (names[:8], names[-8:]))
    assert sum(late) > sum(early)


@pytest.mark.slow
def test_a_failed_trial_says_why_and_the_others_go_on(fake, command):
    status, out, _ = command(*words(fake, 8, "--fail", seed=3))
    assert status == 0
    failed = [result for result in read_all(fake) if result.status == "failed"]
    assert 0 < len(failed) < len(read_all(fake)) == 8
    assert "the learning rate is too high" in (failed[0].folder / "stderr").read_text()
    assert out.count(" failed ") == len(failed)


@pytest.mark.slow
def test_the_median_pruner_ends_trials_early(fake, command):
    command(*words(fake, 9, epochs=8, seed=0, pruner="median"))
    early = [result for result in read_all(fake) if result.status == "early stopped"]
    assert early
    assert all(result.epochs < 8 for result in early)
    assert max(result.value for result in early) < read_all(fake)[0].value
    assert (fake / "s" / "trial_0000" / "run.json").exists()


@pytest.mark.slow
def test_a_signal_stops_all_trials_and_the_same_command_goes_on(fake, command, monkeypatch):
    read, interrupted = optuna_search.read_history, threading.Event()

    def interrupt(path):
        both = all(epochs_of(fake / "s" / f"trial_000{number}") for number in (0, 1))
        if both and not interrupted.is_set():
            interrupted.set()
            os.kill(os.getpid(), signal.SIGINT)
        return read(path)

    monkeypatch.setattr(optuna_search, "read_history", interrupt)
    status, _, err = command(*words(fake, 3, epochs=20, concurrency=2))
    assert status == 130
    assert err.strip() == "search.py: stopped by SIGINT; the same command goes on with the search"
    assert {result.status for result in read_all(fake)} == {"stopped"}
    status, _, _ = command(*words(fake, 3, epochs=20, concurrency=2))
    assert status == 0
    assert [(result.status, result.epochs) for result in read_all(fake)] == [("done", 20)] * 3


def test_a_database_that_cannot_be_used_is_told_in_a_line(fake, command):
    (fake / "s").mkdir()
    (fake / "s" / "search.db").write_text("garbage\n" * 200)
    status, _, err = command(*words(fake, 1))
    assert (status, len(err.splitlines())) == (2, 1)
    assert "s/search.db: cannot be used: (sqlite3.DatabaseError) file is not a database" in err


def test_a_database_that_fails_during_the_search_is_one_line(fake, command, monkeypatch):
    def fail(*_):
        raise StorageInternalError("An exception is raised") from OSError("disk is full\n[SQL]")

    monkeypatch.setattr(optuna_search.Search, "_train", fail)
    status, _, err = command(*words(fake, 1))
    assert (status, err.count("\n")) == (2, 1)
    assert "the search's database cannot be used (disk is full); check its disk" in err


def test_other_choices_than_those_of_the_study_are_refused(fake, command):
    assert command(*words(fake, 1))[0] == 0
    other = SPACE | {"batch_size": {"_type": "choice", "_value": [4, 8]}}
    (fake / "space.json").write_text(json.dumps(other))
    status, _, err = command(*words(fake, 2))
    assert (status, len(err.splitlines())) == (2, 1)
    assert "its search has another space" in err


def test_a_search_whose_first_trials_all_fail_ends(fake, command, monkeypatch):
    (fake / "fake.py").write_text("import sys; sys.exit('no such GPU')")
    status, _, err = command(*words(fake, 40))
    assert status == 2
    assert "the first 3 trials have all failed, the last one: no such GPU" in err
    trials = [(result.status, result.reason, set(result.parameters)) for result in read_all(fake)]
    assert trials == [("failed", "no such GPU", set(SPACE))] * 3


def test_what_belongs_to_the_search_is_refused_among_a_trials_options(tmp_path, command):
    (tmp_path / "space.json").write_text(json.dumps(SPACE))
    for rest, message in (
        (["--init_lr", "0.1"], "--init_lr is given and in"),
        (["--experiment_dir_name", "x"], "--experiment_dir_name is set by the search"),
        (["--nonsense"], "unrecognized arguments: --nonsense"),
        (["--num_epoch", "0"], "--num_epoch 0 must be at least 1"),
    ):
        status, _, err = command(*words(tmp_path, 1), *rest)
        assert status == 2
        assert message in err
    assert not (tmp_path / "s").exists()


# Processes that share a search; some of them are killed


@pytest.fixture
def quick(monkeypatch):
    """Processes notice quickly that another one was killed."""
    monkeypatch.setattr(optuna_search, "BEAT_SECONDS", 1)
    monkeypatch.setattr(optuna_search, "GRACE_SECONDS", 3)


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_a_search_that_was_killed_goes_on_with_the_same_trials(fake, command):
    process = in_background(*words(fake, 4, epochs=12, concurrency=2))
    wait_for(lambda: all(epochs_of(fake / "s" / f"trial_000{number}") >= 3 for number in (0, 1)))
    process.kill()
    process.join()
    points = {result.name: result.parameters for result in read_all(fake)}
    status, _, err = command(*words(fake, 4, epochs=12, concurrency=2))
    assert (status, err) == (0, "")
    # A trial that was killed before it had a folder leaves its number out.
    assert {"trial_0000", "trial_0001"} <= {result.name for result in read_all(fake)}
    assert [(result.status, result.epochs) for result in read_all(fake)] == [("done", 12)] * 4
    assert points.items() <= {result.name: result.parameters for result in read_all(fake)}.items()
    assert (fake / "s" / "trial_0001" / "stderr").read_text().count("started") == 2  # it went on


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_a_trial_of_a_living_process_is_left_to_it(fake, command):
    process = in_background(*words(fake, 1, epochs=150))
    wait_for(lambda: epochs_of(fake / "s" / "trial_0000"))
    assert command(*words(fake, 1, epochs=150))[0] in (0, 1)  # waits for a while, then leaves it alone
    process.join()
    assert process.exitcode == 0
    assert [(result.status, result.epochs) for result in read_all(fake)] == [("done", 150)]
    assert (fake / "s" / "trial_0000" / "stderr").read_text().count("started") == 1


@pytest.mark.slow
def test_several_processes_share_a_search(fake):
    processes = [in_background(*words(fake, 8))]
    wait_for((fake / "s" / "trial_0000").exists)  # the first one makes the tables
    processes += [in_background(*words(fake, 8)) for _ in range(2)]
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    results = read_all(fake)
    assert 8 <= len(results) <= 10  # those that look for the last trial at the same moment all start one
    assert {result.name for result in results} == {f"trial_{number:04d}" for number in range(len(results))}
    assert {result.status for result in results} == {"done"}
    assert all((result.folder / "stderr").read_text().count("started") == 1 for result in results)
