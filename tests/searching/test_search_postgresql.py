"""A search in a real PostgreSQL server: killed processes, a server that goes away, passwords, a real run."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from pathlib import Path

import pytest
import test_search
from helpers.data import arguments
from helpers.runs import SMALL_RUN
from helpers.searches import SPACE, epochs_of, in_background, read_all, wait_for, words

import search
from iaa.searching import optuna_search, storage

COMMAND = search  # of the fixture `command`
pytestmark = pytest.mark.slow
fake = test_search.fake  # the fixture


class Server:
    """A cluster of its own on a free loopback port, with passwords, which ends with these tests whatever happens."""

    def __init__(self, programs: Path, folder: Path):
        self.programs, self.folder = programs, folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        (folder / "password").write_text("s3cret word\n")
        if os.getuid() == 0:  # as whom PostgreSQL refuses to run
            shutil.chown(folder, "nobody", "nogroup")
        line = [
            "initdb",
            "--auth=scram-sha-256",
            "--username=me",
            "--pwfile",
            folder / "password",
            "--no-sync",
        ]
        subprocess.run(self._words(*line, "-D", folder / "data"), check=True, capture_output=True)
        self.start()

    def _words(self, program, *rest):
        user = ["--reuid=nobody", "--regid=nogroup", "--clear-groups"] if os.getuid() == 0 else []
        return ["setpriv", *user, "--pdeathsig=QUIT", self.programs / program, *map(str, rest)]

    def start(self):
        own = ["-h", "127.0.0.1", "-p", self.port, "-k", "", "-c", "fsync=off"]
        with open(self.folder / "log", "a") as log:
            line = self._words("postgres", "-D", self.folder / "data", *own)
            self.process = subprocess.Popen(line, stdout=log, stderr=log, start_new_session=True)
        wait_for(self.answers)

    def answers(self):
        import psycopg

        with contextlib.suppress(psycopg.OperationalError), psycopg.connect(self._plain("postgres")):
            return True

    def _plain(self, database):
        return f"postgresql://me:s3cret%20word@127.0.0.1:{self.port}/{database}"

    def stop(self, number=signal.SIGINT):
        """SIGINT: fast, as for a restart; SIGQUIT: at once."""
        self.process.send_signal(number)
        self.process.wait(60)

    def database(self, name):
        """Makes an empty one; its URL."""
        import psycopg

        with psycopg.connect(self._plain("postgres"), autocommit=True) as link:
            link.execute(f"create database {name}")
        return self._plain(name)


@pytest.fixture(scope="module")
def server():
    pytest.importorskip("psycopg", reason="psycopg is not installed: pip install -r requirements/search.txt")
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not programs or not shutil.which("setpriv"):
        pytest.skip("PostgreSQL's server (Debian: postgresql) or setpriv is not installed")
    with tempfile.TemporaryDirectory() as folder:  # pytest's own cannot be entered by another user
        made = Server(programs[-1].parent, Path(folder))
        yield made
        made.stop(signal.SIGQUIT)


@pytest.fixture
def url(server, request):
    """Of an empty database."""
    return server.database(f"d{abs(hash(request.node.name))}")


@pytest.fixture
def quick(monkeypatch):
    """Processes notice quickly that another one has died."""
    monkeypatch.setattr(storage, "BEAT_SECONDS", 1)
    monkeypatch.setattr(storage, "GRACE_SECONDS", 2)


def machine(folder, name):
    """A machine's own folder, which nobody else has."""
    (folder / name).mkdir()
    (folder / name / "space.json").write_text(json.dumps(SPACE))
    return folder / name


def attempts(url):
    """The trials of the study `s`, by the number of the first attempt: the states of all attempts."""
    study = optuna_search.optuna.load_study(
        study_name="s", storage=storage.open_storage(storage.read_url(url, Path()))
    )
    states = {}
    for trial in study.get_trials():
        states.setdefault(storage.first_number(trial), []).append(trial.state.name)
    return states


def test_three_processes_of_which_one_is_killed(fake, url, quick):
    folders = [machine(fake, name) for name in ("one", "two", "three")]
    processes = [in_background(*words(folder, 9, epochs=30, storage=url)) for folder in folders]
    wait_for(lambda: all(list(folder.glob("s/trial_*/metrics.csv")) for folder in folders))
    processes[0].kill()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [-signal.SIGKILL, 0, 0]
    assert 9 <= len(attempts(url)) <= 11
    assert sorted(map(tuple, attempts(url).values()))[:-1] == [("COMPLETE",)] * (len(attempts(url)) - 1)
    assert ["FAIL", "COMPLETE"] in attempts(url).values()  # the killed process's
    ended = {result.name for folder in folders for result in read_all(folder) if result.status == "done"}
    assert ended == {f"trial_{number:04d}" for number in attempts(url)}


def test_a_server_that_goes_away_ends_the_search_with_everything_saved(fake, url, server, quick, command):
    process = in_background(*words(fake, 1, epochs=120, storage=url), errors=fake / "errors")
    wait_for(lambda: epochs_of(fake / "s" / "trial_0000") >= 3)
    server.stop()
    try:
        process.join(30)
        assert process.exitcode == 2
        errors = (fake / "errors").read_text()
        assert len(errors.splitlines()) == 1
        assert "cannot be used (" in errors
        assert "nothing is lost, the same command goes on" in errors
        assert "s3cret" not in errors
        assert [result.status for result in read_all(fake)] == ["stopped"]
    finally:
        server.start()
    assert 3 <= epochs_of(fake / "s" / "trial_0000") < 120
    assert command(*words(fake, 1, epochs=120, storage=url))[0] == 0
    assert [(result.status, len(result.curve)) for result in read_all(fake)] == [("done", 120)]
    assert attempts(url) == {0: ["FAIL", "COMPLETE"]}


def test_a_database_that_cannot_be_used_is_an_error_of_one_line(fake, url, server, command):
    for wrong_url, message in (
        (url.replace("s3cret", "s3cr3t"), "password authentication failed"),
        (url.rpartition("/")[0] + "/nothing", 'database "nothing" does not exist'),
        (url.replace(f":{server.port}", ":1"), "onnection refused"),
    ):
        for line in (words(fake, 2, storage=wrong_url), ("show", fake / "s", "--storage", wrong_url)):
            status, _, err = command(*line)
            assert (status, len(err.splitlines())) == (2, 1)
            assert message in err
            assert "s3cr" not in err


def test_a_real_trial_of_a_killed_search_goes_on_from_its_checkpoint(ava, url, quick, command, monkeypatch):
    (ava / "space.json").write_text(json.dumps({"init_lr": {"_type": "choice", "_value": [1e-3]}}))
    monkeypatch.setattr(optuna_search, "MAIN", SMALL_RUN)
    rest = arguments(ava, experiment_dir_name=None, num_epoch=40)
    line = [*words(ava, 1, storage=url)[:-2], *rest]
    process = in_background(*line)
    folder = ava / "s" / "trial_0000"
    wait_for(lambda: epochs_of(folder) >= 2)
    process.kill()
    process.join()
    status, _, err = command(*line)
    assert status == 0, err
    text = (folder / "stderr").read_text()
    resumed = int(text.partition("resumed after ")[2].split()[0])
    assert 2 <= resumed < 40
    assert list(read_all(ava)[0].curve) == list(range(1, 41))
    assert attempts(url) == {0: ["FAIL", "COMPLETE"]}
