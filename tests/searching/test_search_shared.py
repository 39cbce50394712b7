"""Processes that share a search; some of them are killed."""

import os
import re
import shutil

import pytest
import test_search
from helpers.searches import epochs_of, in_background, read_all, wait_for, words

import search
from iaa.searching import optuna_search

COMMAND = search  # of the fixture `command`
pytestmark = pytest.mark.slow
fake = test_search.fake  # the fixture


@pytest.fixture
def quick(monkeypatch):
    """Processes notice quickly that another one was killed."""
    monkeypatch.setattr(optuna_search, "BEAT_SECONDS", 1)
    monkeypatch.setattr(optuna_search, "GRACE_SECONDS", 3)


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


@pytest.mark.usefixtures("quick")
def test_a_trial_of_a_living_process_is_left_to_it(fake, command):
    process = in_background(*words(fake, 1, epochs=150))
    wait_for(lambda: epochs_of(fake / "s" / "trial_0000"))
    assert command(*words(fake, 1, epochs=150))[0] in (0, 1)  # waits for a while, then leaves it alone
    process.join()
    assert process.exitcode == 0
    assert [(result.status, result.epochs) for result in read_all(fake)] == [("done", 150)]
    assert (fake / "s" / "trial_0000" / "stderr").read_text().count("started") == 1


def share(fake, count, **options):
    """Three processes train `count` trials; returns the results."""
    processes = [in_background(*words(fake, count, **options))]
    wait_for((fake / "s" / "trial_0000").exists)  # the first one makes the tables
    processes += [in_background(*words(fake, count, **options)) for _ in range(2)]
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    return read_all(fake)


def test_several_processes_share_a_search(fake):
    results = share(fake, 8)
    assert 8 <= len(results) <= 10  # those that look for the last trial at the same moment all start one
    assert {result.name for result in results} == {f"trial_{number:04d}" for number in range(len(results))}
    assert {result.status for result in results} == {"done"}
    assert all((result.folder / "stderr").read_text().count("started") == 1 for result in results)


def test_a_study_may_lie_in_another_database(fake, command):
    """Two searches, by the names of their folders, in one database."""
    (fake / "other").mkdir()
    shutil.copy(fake / "space.json", fake / "other")
    for folder in (fake, fake / "other"):
        line = words(folder, 1, storage=f"sqlite:///{fake}/shared.db")
        line = [folder / folder.name if word == folder / "s" else word for word in line]
        assert command(*line)[0] == 0
        assert [path.name for path in (folder / folder.name).iterdir()] == ["trial_0000"]


def test_a_study_in_postgresql(fake, command):
    """EAT_TEST_STORAGE: the URL of an empty database, postgresql+psycopg://USER:PASSWORD@HOST/DATABASE."""
    pytest.importorskip("psycopg", reason="requirements/search.txt")
    if not (url := os.environ.get("EAT_TEST_STORAGE")):
        pytest.skip("EAT_TEST_STORAGE names no database")
    assert {result.status for result in share(fake, 8, storage=url)} == {"done"}
    status, _, err = command(*words(fake, 1, storage=re.sub(":[^:@]*@", ":wrong@", url)))
    assert (status, len(err.splitlines())) == (2, 1)
    assert "authentication failed" in err
