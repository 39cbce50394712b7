"""The study's database: Optuna's storage, with a server that may be away for a while."""

from __future__ import annotations

import inspect
import logging
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import wraps
from pathlib import Path

import optuna
from optuna.exceptions import OptunaError, StorageInternalError, UpdateFinishedTrialError
from optuna.storages import RDBStorage
from sqlalchemy import event, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import (
    IntegrityError,
    InterfaceError,
    OperationalError,
    PendingRollbackError,
    ProgrammingError,
    SQLAlchemyError,
    TimeoutError,
)

from option import InputError

log = logging.getLogger("eat")

BEAT_SECONDS = 5  # how often the study is told that a trial's driver lives
GRACE_SECONDS = 30  # without that, until another driver goes on with the trial
PATIENCE_SECONDS = 300  # how long a server may be away
RETRY_SECONDS = 1

# PendingRollbackError: Optuna asks once more, by a link that has just been cut.
AWAY = (OperationalError, InterfaceError, PendingRollbackError, TimeoutError)

# The drivers of requirements/search.txt, told to notice a server that has vanished without a word.
_TCP = {
    "tcp_user_timeout": "30000",
    "keepalives_idle": "15",
    "keepalives_interval": "5",
    "keepalives_count": "3",
}
SERVERS = {
    "postgresql": ("postgresql+psycopg", {"connect_timeout": "10", **_TCP}),
    "mysql": ("mysql+pymysql", {"connect_timeout": "10", "read_timeout": "60", "write_timeout": "60"}),
}

# A driver that was killed between taking a trial and the trial's first heartbeat, which Optuna would wait for forever.
WITHOUT_BEAT = text(
    "SELECT trial_id FROM trials WHERE study_id = :study AND state = 'RUNNING'"
    " AND trial_id NOT IN (SELECT trial_id FROM trial_heartbeats)"
)


def _patient(method: Callable) -> Callable:
    """`method`, one whole transaction, again and again until the database answers."""

    @wraps(method)
    def call(self: Storage, *given, **named):
        while True:
            try:
                result = method(self, *given, **named)
            except StorageInternalError as error:
                self.wait(error)
            else:
                self.failures = 0
                return result

    return call


def patient(storage: type) -> type:
    """All of Optuna's calls wait; the heartbeats must not, for they are waited for when a trial ends."""
    for name, method in vars(RDBStorage).items():
        if inspect.isfunction(method) and not name.startswith("__") and name != "record_heartbeat":
            setattr(storage, name, _patient(vars(storage).get(name, method)))
    return storage


@patient
class Storage(RDBStorage):
    """Optuna's own, which outlasts a restart of its server, and takes no trial for lost because of that.

    hopeless: whether to give up waiting before PATIENCE_SECONDS have passed.
    """

    def __init__(self, url: URL, hopeless: Callable[[], bool] = lambda: False):
        self.hopeless, self.lock, self.failures, self.away_since = hopeless, threading.Lock(), 0, 0.0
        local = url.get_backend_name() == "sqlite"
        super().__init__(
            url.render_as_string(hide_password=False).replace("{", "{{").replace("}", "}}"),
            {"connect_args": {"timeout": 60}} if local else {"pool_pre_ping": True},
            heartbeat_interval=BEAT_SECONDS,
            grace_period=GRACE_SECONDS,
        )
        self.unsure_until = time.monotonic() + GRACE_SECONDS
        if local:  # which knows no locks of rows: reading and then writing must be one step
            event.listen(self.engine, "begin", lambda link: link.exec_driver_sql("BEGIN IMMEDIATE"))

    def wait(self, error: StorageInternalError) -> None:
        """For a second, for a server that does not answer. Raises the error where that is not it, or has lasted too long."""
        if not isinstance(error.__cause__, AWAY):
            raise error
        now = time.monotonic()
        self.unsure_until = now + GRACE_SECONDS
        with self.lock:
            self.failures += 1
            self.away_since = now if self.failures == 1 else self.away_since
            told = self.failures == 2  # the first may be a deadlock or a link that was cut
        if self.hopeless() or now - self.away_since > PATIENCE_SECONDS:
            raise error
        if told:
            minutes = PATIENCE_SECONDS / 60
            reason = why(error).split("\n")[0]
            log.warning(
                "warning: the database does not answer (%s); waiting up to %g minutes", reason, minutes
            )
        time.sleep(RETRY_SECONDS)

    def record_heartbeat(self, trial_id: int) -> None:
        try:
            super().record_heartbeat(trial_id)
        except StorageInternalError:  # which would end the thread; the next beat makes up for it
            self.unsure_until = time.monotonic() + GRACE_SECONDS

    def _get_stale_trial_ids(self, study_id: int) -> list[int]:
        """None until all drivers have had the time to tell a database that was away, perhaps, that they live."""
        running: list[int] = []
        with suppress(SQLAlchemyError), self.engine.connect() as link:
            running += link.scalars(WITHOUT_BEAT, {"study": study_id})
        for trial_id in running:
            self.record_heartbeat(trial_id)
        return super()._get_stale_trial_ids(study_id) if time.monotonic() > self.unsure_until else []

    def set_trial_state_values(self, trial_id: int, state, values=None) -> bool:
        try:
            return super().set_trial_state_values(trial_id, state, values)
        except UpdateFinishedTrialError:
            if self.get_trial(trial_id).state != state:
                raise
            return True  # by an earlier try, whose answer was lost


def read_url(given: str | None, folder: Path) -> URL:
    """The database of --storage, by default `search.db` in the folder. Raises InputError."""
    try:
        url = make_url(given or URL.create("sqlite", database=f"{folder}/search.db"))
        driver, timeouts = SERVERS.get(url.drivername, (url.drivername, {}))
        return url.set(drivername=driver, query=timeouts | dict(url.query))
    except (SQLAlchemyError, ValueError):  # their text may hold the password
        example = "postgresql://USER:PASSWORD@HOST/DATABASE"
        raise InputError(f"--storage: give a URL such as {example}") from None


def open_storage(url: URL, hopeless: Callable[[], bool] = lambda: False) -> Storage:
    """With its tables made where they are missing. Raises InputError where they are another Optuna's."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    logging.getLogger("sqlalchemy.pool").setLevel(logging.CRITICAL)  # a link that was cut, as a traceback
    # Heartbeats count as experimental, and Optuna 4.9 has renamed their parts.
    warnings.filterwarnings("ignore", module=r"optuna|searching\.")
    tries = 50
    while True:
        try:
            return Storage(url, hopeless)
        except RuntimeError as error:
            raise InputError(f"{place(url)}: {error}") from None
        except (IntegrityError, OperationalError, ProgrammingError) as error:
            tries -= 1
            if not tries or not (isinstance(error, IntegrityError) or "already exists" in why(error)):
                raise
            time.sleep(0.1)  # another driver is making the same tables


def place(url: URL) -> str:
    """For people: without the password, which the query may hold, too."""
    return repr(url.set(query={}))


def why(error: BaseException) -> str:
    """The database's own words."""
    error = error.__cause__ or error if isinstance(error, StorageInternalError) else error
    return str(getattr(error, "orig", None) or error).strip()


@contextmanager
def told(url: URL, rest: str) -> Iterator[None]:
    """Say in one line what is wrong with the database. rest: what to do about it."""
    try:
        yield
    except ImportError as error:
        missing = error.__cause__ or error
        raise InputError(f"{place(url)}: {missing}; pip install -r requirements/search.txt") from None
    except (OptunaError, SQLAlchemyError) as error:
        reason = " ".join(why(error).replace(url.password or "\n", "***").split())
        raise InputError(f"{place(url)}: cannot be used ({reason}); {rest}") from None
