"""The database of a study: Optuna's storage, with its heartbeats, and its errors as one line."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import optuna
from optuna.exceptions import ExperimentalWarning, OptunaError, StorageInternalError, UpdateFinishedTrialError
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.trial import FrozenTrial
from sqlalchemy import event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import IntegrityError, OperationalError, ProgrammingError, SQLAlchemyError

from iaa.errors import InputError

BEAT_SECONDS = 5  # between two signs of life of a trial's process
GRACE_SECONDS = 30  # without a sign of life, until another process retries the trial
DRIVERS = {"postgresql": "postgresql+psycopg", "mysql": "mysql+pymysql"}  # of requirements/search.txt


def queue_again(study: optuna.Study, trial: FrozenTrial) -> None:
    """Let the next process that asks for a trial go on with this one."""
    RetryHeartbeatStaleTrialCallback()(study, trial)


class Storage(RDBStorage):
    """Optuna's storage. A heartbeat that the database does not take is left out, instead of ending all further ones."""

    def record_heartbeat(self, trial_id: int) -> None:
        with suppress(OptunaError, SQLAlchemyError):
            super().record_heartbeat(trial_id)


def read_url(text: str | None, folder: Path) -> URL:
    """The database of --storage; without it, `search.db` in the folder. Raises InputError."""
    try:
        url = make_url(text or URL.create("sqlite", database=f"{folder}/search.db"))
    except (SQLAlchemyError, ValueError):  # their message may hold the password
        example = "postgresql://USER:PASSWORD@HOST/DATABASE"
        raise InputError(f"--storage: give a URL such as {example}") from None
    return url.set(drivername=DRIVERS.get(url.drivername, url.drivername))


def open_storage(url: URL) -> Storage:
    """Optuna's storage in that database; its tables are made where they are missing. Raises InputError."""
    warnings.filterwarnings("ignore", category=ExperimentalWarning)  # heartbeats
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    logging.getLogger("sqlalchemy.pool").setLevel(logging.CRITICAL)  # a lost connection, as a traceback
    local = url.get_backend_name() == "sqlite"
    text = (
        url.render_as_string(hide_password=False).replace("{", "{{").replace("}", "}}")
    )  # Optuna formats it
    tries = 10
    while True:
        try:
            storage = Storage(
                text,
                {"connect_args": {"timeout": 60}} if local else {"pool_pre_ping": True},
                heartbeat_interval=BEAT_SECONDS,
                grace_period=GRACE_SECONDS,
                heartbeat_stale_trial_callback=queue_again,
            )
            break
        except RuntimeError as error:  # tables of another Optuna
            raise InputError(f"{hide_password(url)}: {error}") from None
        except (IntegrityError, OperationalError, ProgrammingError) as error:
            tries -= 1
            if not tries or not (isinstance(error, IntegrityError) or "already exists" in str(error)):
                raise
            time.sleep(0.2)  # another process is making the same tables
    if local:  # SQLite locks no rows: reading and then writing must be one step
        event.listen(storage.engine, "begin", lambda link: link.exec_driver_sql("BEGIN IMMEDIATE"))
    return storage


def hide_password(url: URL) -> str:
    """The URL without the password, which its query may hold, too."""
    return repr(url.set(query={}))


@contextmanager
def database_errors(url: URL, remedy: str) -> Iterator[None]:
    """Turn errors of the database into an InputError of one line, which ends with the remedy."""
    try:
        yield
    except ImportError as error:
        missing = error.__cause__ or error
        raise InputError(f"{hide_password(url)}: {missing}; pip install -r requirements/search.txt") from None
    except UpdateFinishedTrialError:
        reason = f"no heartbeat for {GRACE_SECONDS} s, so another process took over a trial of this one"
        raise InputError(f"{hide_password(url)}: {reason}; the same command goes on") from None
    except (OptunaError, SQLAlchemyError) as error:
        cause = error.__cause__ or error if isinstance(error, StorageInternalError) else error
        reason = " ".join(str(getattr(cause, "orig", None) or cause).split())
        raise InputError(f"{hide_password(url)}: cannot be used ({reason}); {remedy}") from None
