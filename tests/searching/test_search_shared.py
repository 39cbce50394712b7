"""Processes and machines that share a search; some of them are killed."""

import json
import os
import signal
import sqlite3
import sys
from unittest.mock import Mock

import pytest
import test_search
from helpers.searches import SPACE, epochs_of, in_background, read_all, wait_for, words

import search
from iaa.searching import optuna_search, storage

COMMAND = search  # of the fixture `command`
fake = test_search.fake  # the fixture


@pytest.mark.slow
def test_a_search_that_was_killed_goes_on_with_the_same_trials(fake, command, monkeypatch):
    monkeypatch.setattr(storage, "BEAT_SECONDS", 1)
    monkeypatch.setattr(storage, "GRACE_SECONDS", 2)
    process = in_background(*words(fake, 4, epochs=12, concurrency=2))
    wait_for(lambda: all(epochs_of(fake / "s" / f"trial_000{number}") >= 3 for number in (0, 1)))
    process.kill()
    process.join()
    points = {result.name: result.parameters for result in read_all(fake)}
    status, _, err = command(*words(fake, 4, epochs=12, concurrency=2))
    assert (status, err) == (0, "")
    # A trial that was killed before it had a folder leaves its number out.
    assert {"trial_0000", "trial_0001"} <= {result.name for result in read_all(fake)}
    assert [(result.status, len(result.curve)) for result in read_all(fake)] == [("done", 12)] * 4
    assert points.items() <= {result.name: result.parameters for result in read_all(fake)}.items()
    assert (fake / "s" / "trial_0001" / "stderr").read_text().count("started") == 2  # it went on


@pytest.mark.slow
def test_a_trial_of_a_living_process_is_left_to_it(fake, command, monkeypatch):
    monkeypatch.setattr(storage, "BEAT_SECONDS", 1)
    monkeypatch.setattr(storage, "GRACE_SECONDS", 5)
    process = in_background(*words(fake, 1, epochs=150))
    wait_for(lambda: epochs_of(fake / "s" / "trial_0000"))
    assert command(*words(fake, 1, epochs=150))[0] in (0, 1)  # waits for a while, then leaves it alone
    process.join()
    assert process.exitcode == 0
    assert [(result.status, len(result.curve)) for result in read_all(fake)] == [("done", 150)]
    assert (fake / "s" / "trial_0000" / "stderr").read_text().count("started") == 1


@pytest.mark.slow
def test_a_process_that_stood_still_leaves_its_trial_to_the_one_that_took_it(fake, command, monkeypatch):
    monkeypatch.setattr(storage, "BEAT_SECONDS", 1)
    monkeypatch.setattr(storage, "GRACE_SECONDS", 2)
    beat, beaten = storage.RDBStorage.record_heartbeat, []
    with monkeypatch.context() as patch:  # to the others, no more heartbeats are a process that stands still
        patch.setattr(
            storage.RDBStorage, "record_heartbeat", lambda *own: beaten or beaten.append(beat(*own))
        )
        process = in_background(*words(fake, 1, epochs=80), errors=fake / "errors")
        wait_for(lambda: epochs_of(fake / "s" / "trial_0000"))
    assert command(*words(fake, 1, epochs=80))[0] == 0
    process.join()
    assert process.exitcode == 2
    assert "nothing is lost, the same command goes on" in (fake / "errors").read_text()
    assert [(result.status, len(result.curve)) for result in read_all(fake)] == [("done", 80)]


@pytest.mark.slow
def test_several_processes_share_a_search(fake):
    processes = [in_background(*words(fake, 8)) for _ in range(3)]
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    count = len(read_all(fake))
    assert 8 <= count <= 10  # those that look for the last trial at the same moment all start one
    assert {result.name for result in read_all(fake)} == {f"trial_{number:04d}" for number in range(count)}
    assert {result.status for result in read_all(fake)} == {"done"}
    assert all((result.folder / "stderr").read_text().count("started") == 1 for result in read_all(fake))


@pytest.mark.slow
def test_heartbeats_that_the_database_does_not_take_do_not_end_a_trial(fake, command, monkeypatch):
    refuse = Mock(side_effect=[None, *[storage.StorageInternalError] * 9])
    monkeypatch.setattr(storage, "BEAT_SECONDS", 1)
    monkeypatch.setattr(storage.RDBStorage, "record_heartbeat", refuse)
    assert command(*words(fake, 1, epochs=40))[0] == 0
    assert refuse.call_count > 1


@pytest.fixture
def machines(fake, monkeypatch):
    """machines(name): on that machine, whose folders nobody else has; the database is shared."""

    def on(name):
        (fake / name).mkdir(exist_ok=True)
        (fake / name / "space.json").write_text(json.dumps(SPACE))
        monkeypatch.setattr("socket.gethostname", lambda: name)
        return fake / name

    on.url = f"sqlite:///{fake}/shared.db"
    return on


@pytest.mark.slow
def test_machines_share_a_search_by_its_database_alone(machines, command):
    assert command(*words(machines("one"), 2, storage=machines.url))[0] == 0
    assert command(*words(machines("two"), 4, storage=machines.url))[0] == 0
    assert {result.name for result in read_all(machines("two"))} == {"trial_0002", "trial_0003"}
    shared = ("--storage", machines.url)
    for line in (words(machines("one"), 4, storage=machines.url), ("show", machines("one") / "s", *shared)):
        status, out, _ = command(*line)
        assert (status, out.count(" done ")) == (0, 4)
        assert out.count("two:") == 2  # the machine of two folders
    everything = read_all(machines("one")) + read_all(machines("two"))
    best = max(everything, key=lambda result: result.value)
    for name in ("one", "two"):  # one of them has not trained it
        file = machines(name) / "best.json"
        assert command("best", machines(name) / "s", *shared, "--out", file)[0] == 0
        assert best.parameters.items() <= json.loads(file.read_text()).items()
    assert command("plot", machines("two") / "s", *shared, "--out", machines("two") / "b.png")[0] == 0
    status, _, err = command("show", machines("two") / "other", *shared)
    assert (status, len(err.splitlines())) == (2, 1)
    assert "no search 'other' in it" in err


@pytest.mark.slow
def test_a_trial_whose_checkpoint_is_on_another_machine_starts_over_and_says_so(
    machines, command, monkeypatch, caplog
):
    read = optuna_search.read_history

    def interrupt(path):
        if epochs_of(path.parent) >= 2:
            os.kill(os.getpid(), signal.SIGINT)
        return read(path)

    with monkeypatch.context() as patch:
        patch.setattr(optuna_search, "read_history", interrupt)
        assert command(*words(machines("one"), 1, epochs=40, storage=machines.url))[0] == 130
    assert command(*words(machines("two"), 1, epochs=40, storage=machines.url))[0] == 0
    assert "trial_0000 starts over: its folder is on another machine" in caplog.text
    assert len(read_all(machines("two"))[0].curve) == 40
    _, out, _ = command("show", machines("one") / "s", "--storage", machines.url)
    assert (out.count(" done "), out.count("two:"), len(out.splitlines())) == (1, 1, 2)


@pytest.mark.slow
def test_machines_may_have_their_data_in_other_places(fake, command, monkeypatch):
    for place, limit, wanted in (("/a", 3, 0), ("/b", 3, 0), ("/b", 4, 2)):
        options = {"dataset": "demo", "path_to_images": place, "path_to_save_csv": place, "limit": limit}
        monkeypatch.setattr(search, "parse_options", lambda _, options=options: options)
        assert command(*words(fake, 1))[0] == wanted


def test_tables_of_another_optuna_are_refused_in_one_line(fake, command):
    assert command(*words(fake, 1))[0] == 0
    with sqlite3.connect(fake / "s" / "search.db") as link:
        link.execute("update alembic_version set version_num = 'v2.6.0.a'")
    before = (fake / "s" / "search.db").read_bytes()
    status, _, err = command(*words(fake, 2))
    assert (status, len(err.splitlines())) == (2, 1)
    assert "no longer compatible with the table schema" in err
    assert "optuna storage upgrade" in err
    assert (fake / "s" / "search.db").read_bytes() == before


@pytest.mark.parametrize(("server", "package"), [("postgresql", "psycopg"), ("mysql", "pymysql")])
def test_a_database_driver_that_is_not_installed_is_named(fake, command, monkeypatch, server, package):
    monkeypatch.setitem(sys.modules, package, None)
    status, _, err = command(*words(fake, 1, storage=f"{server}://me:secret@host/db"))
    assert (status, len(err.splitlines())) == (2, 1)
    assert "pip install -r requirements/search.txt" in err
    assert "secret" not in err
