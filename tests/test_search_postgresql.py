"""A search in a real PostgreSQL server: killed drivers, a server that goes away, passwords, real runs."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import pytest
import test_search
from common import arguments
from test_distributed import SMALL_RUN
from test_search import SPACE, epochs_of, found, in_background, wait_for, words

import search
from searching import driver, storage

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
        """SIGINT: fast, as for a restart; SIGQUIT: at once, as in a crash."""
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
    """Drivers that believe quickly that another has died."""
    monkeypatch.setattr(storage, "BEAT_SECONDS", 1)
    monkeypatch.setattr(storage, "GRACE_SECONDS", 2)


def machine(folder, name):
    """A machine's own folder, which nobody else has."""
    (folder / name).mkdir()
    (folder / name / "space.json").write_text(json.dumps(SPACE))
    return folder / name


def attempts(url):
    """The trials of the study `s`, by the number of the first attempt: the states of all attempts that began."""
    known = {}
    for one in driver.load(url, Path("s")).get_trials():
        if one.params and "twin" not in one.user_attrs:
            known.setdefault(driver._attempts(one)[0], []).append(one.state.name)
    return known


def test_three_drivers_one_killed_and_the_server_restarted(fake, url, server, quick):
    places = [machine(fake, name) for name in ("one", "two", "three")]
    lines = [words(place, 9, epochs=50, storage=url) for place in places]
    drivers = [
        in_background(*line, errors=place / "errors") for line, place in zip(lines, places, strict=True)
    ]
    wait_for(lambda: all(list(place.glob("s/trial_*/metrics.csv")) for place in places))
    drivers[0].kill()
    wait_for(lambda: len(list(fake.glob("*/s/trial_*/metrics.csv"))) >= 4)
    server.stop()
    time.sleep(storage.GRACE_SECONDS + 2 * storage.BEAT_SECONDS)  # all others look as if they had died, too
    server.start()
    wait_for(lambda: len(list(fake.glob("*/s/trial_*/metrics.csv"))) >= 6)
    server.stop(signal.SIGQUIT)
    server.start()
    for process in drivers[1:]:
        process.join(60)
    assert [process.exitcode for process in drivers] == [-signal.SIGKILL, 0, 0]
    became = attempts(url)
    assert len(became) == 9
    assert all(
        states.count("COMPLETE") == 1 and set(states) <= {"COMPLETE", "FAIL"} for states in became.values()
    )
    ended = {one.name for place in places for one in found(place) if one.status == "done"}
    assert ended == {f"trial_{number:04d}" for number in became}
    starts = sum(path.read_text().count("started") for path in fake.glob("*/s/*/stderr"))
    assert starts == 9 + 1  # the killed driver's trial is the only one that began twice
    for place in places[1:]:
        errors = (place / "errors").read_text()
        assert "does not answer" in errors
        assert errors.count("does not answer") <= 2  # a line for each time
        assert "Traceback" not in errors


def test_a_server_that_stays_away_ends_the_search_with_everything_saved(
    fake,
    url,
    server,
    quick,
    command,
    monkeypatch,
):
    monkeypatch.setattr(storage, "PATIENCE_SECONDS", 2)
    process = in_background(*words(fake, 1, epochs=120, storage=url), errors=fake / "errors")
    wait_for(lambda: epochs_of(fake / "s" / "trial_0000") >= 3)
    server.stop()
    try:
        process.join(30)
        assert process.exitcode == 2
        told = (fake / "errors").read_text().splitlines()
        assert len(told) == 2
        assert "warning: the database does not answer (" in told[0]
        assert "cannot be used (" in told[1]
        assert "nothing is lost, the same command goes on" in told[1]
        assert "s3cret" not in "".join(told)
        assert [one.status for one in found(fake)] == ["stopped"]
    finally:
        server.start()
    assert 3 <= epochs_of(fake / "s" / "trial_0000") < 120
    assert command(*words(fake, 1, epochs=120, storage=url))[0] == 0
    assert [(one.status, len(one.history)) for one in found(fake)] == [("done", 120)]
    assert attempts(url) == {0: ["FAIL", "COMPLETE"]}


def test_ctrl_c_is_heard_while_the_server_is_away(fake, url, server, quick):
    process = in_background(*words(fake, 1, epochs=300, storage=url), errors=fake / "errors")
    wait_for(lambda: epochs_of(fake / "s" / "trial_0000") >= 3)
    server.stop()
    try:
        wait_for(lambda: "does not answer" in (fake / "errors").read_text())
        os.kill(process.pid, signal.SIGINT)
        process.join(10)
        assert process.exitcode == 130
        assert [one.status for one in found(fake)] == ["stopped"]
    finally:
        server.start()


def test_a_database_that_cannot_be_used_is_told_in_one_line(fake, url, server, command):
    assert command(*words(fake, 1, storage=url))[0] == 0
    import psycopg

    with psycopg.connect(url) as link:
        link.execute("update alembic_version set version_num = 'v2.6.0.a'")
    for given, message in (
        (url.replace("s3cret", "s3cr3t"), "password authentication failed"),
        (url.rpartition("/")[0] + "/nothing", 'database "nothing" does not exist'),
        (url.replace(f":{server.port}", ":1"), "onnection refused"),
        (url, "no longer compatible with the table schema"),
    ):
        for line in (words(fake, 2, storage=given), ("show", fake / "s", "--storage", given)):
            status, _, err = command(*line)
            assert (status, len(err.splitlines())) == (2, 1)
            assert message in err
            assert "s3cr" not in err
    assert [one.status for one in found(fake)] == ["done"]


def test_a_real_trial_of_a_killed_driver_goes_on_from_its_checkpoint(ava, url, quick, command, monkeypatch):
    (ava / "space.json").write_text(json.dumps({"init_lr": {"_type": "choice", "_value": [1e-3]}}))
    monkeypatch.setattr(driver, "MAIN", SMALL_RUN)
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
    assert list(found(ava)[0].history["epoch"]) == list(range(1, 41))
    assert attempts(url) == {0: ["FAIL", "COMPLETE"]}
