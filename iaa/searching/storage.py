"""The database of a study: Optuna's storage, its errors as one line, and its trials as results."""

from __future__ import annotations

import logging
import math
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning, OptunaError, StorageInternalError
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.trial import FrozenTrial
from sqlalchemy import event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import DBAPIError, IntegrityError, SQLAlchemyError

from iaa.errors import InputError
from iaa.searching.results import TrialResult, sort_best_first
from iaa.searching.space import suggest

BEAT_SECONDS = 5  # between two heartbeats of a trial
GRACE_SECONDS = 30  # without a heartbeat, until another process retries the trial
DRIVERS = {"postgresql": "postgresql+psycopg", "mysql": "mysql+pymysql"}  # of requirements/search.txt
STATUSES = {"COMPLETE": "done", "PRUNED": "early stopped", "RUNNING": "running", "WAITING": "waiting"}


def read_url(storage_url: str | None, folder: Path) -> URL:
    """The database of --storage; without it, `search.db` in the folder. Raises InputError."""
    try:
        url = make_url(storage_url or URL.create("sqlite", database=f"{folder}/search.db"))
    except (SQLAlchemyError, ValueError):  # their message may hold the password
        example = "postgresql://USER:PASSWORD@HOST/DATABASE"
        raise InputError(f"--storage: give a URL such as {example}") from None
    return url.set(drivername=DRIVERS.get(url.drivername, url.drivername))


def open_storage(url: URL) -> RDBStorage:
    """Optuna's storage in that database; its tables are made if they are missing. Raises InputError."""
    warnings.filterwarnings("ignore", category=ExperimentalWarning)  # heartbeats
    warnings.filterwarnings("ignore", message="Heartbeat of storage")  # the search sends them itself
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    logging.getLogger("sqlalchemy.pool").setLevel(logging.CRITICAL)  # a lost connection, as a traceback
    is_sqlite = url.get_backend_name() == "sqlite"
    text = url.render_as_string(hide_password=False).replace("{", "{{").replace("}", "}}")
    for attempt in range(10):
        try:
            storage = RDBStorage(
                text,  # Optuna formats it
                {"connect_args": {"timeout": 60}} if is_sqlite else {"pool_pre_ping": True},
                heartbeat_interval=BEAT_SECONDS,
                grace_period=GRACE_SECONDS,
                heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(),
            )
            break
        except RuntimeError as error:  # tables of another Optuna
            raise InputError(f"{hide_password(url)}: {error}") from None
        except DBAPIError as error:
            if attempt == 9 or not (isinstance(error, IntegrityError) or "already exists" in str(error)):
                raise
            time.sleep(0.2)  # another process is making the same tables
    if is_sqlite:  # SQLite locks no rows: two processes must not retry the same trial
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
    except (OptunaError, SQLAlchemyError) as error:
        cause = error.__cause__ or error if isinstance(error, StorageInternalError) else error
        reason = " ".join(str(getattr(cause, "orig", None) or cause).split())
        raise InputError(f"{hide_password(url)}: cannot be used ({reason}); {remedy}") from None


def study_name(storage_url: str | None, folder: Path) -> str:
    """The study's name: the folder's in the database of --storage, which may hold many searches."""
    return folder.resolve().name if storage_url else "search"


def first_number(trial: FrozenTrial) -> int:
    """The number of a trial's first attempt; to Optuna each further attempt is another trial."""
    return (RetryHeartbeatStaleTrialCallback.retry_history(trial) or [trial.number])[0]


def read_study(
    storage_url: str, folder: Path, metric_name: str | None = None
) -> tuple[list[TrialResult], str]:
    """The trials of a study, of all machines, the best first, and the metric. Raises InputError.

    metric_name: default the search's own. The study has no other one.
    """
    url, name = read_url(storage_url, folder), study_name(storage_url, folder)
    with database_errors(url, "check the server and --storage"):
        try:
            study = optuna.load_study(study_name=name, storage=open_storage(url))
        except KeyError:
            raise InputError(f"{hide_password(url)}: no search {name!r} in it") from None
        search, trials = study.user_attrs["search"], study.get_trials(deepcopy=False)
    if metric_name not in (None, search["metric"]):
        raise InputError(
            f"--metric {metric_name}: the study has {search['metric']} alone; leave --metric out"
        )
    latest = {first_number(trial): trial for trial in trials}
    results = [_make_result(number, trial, search) for number, trial in latest.items()]
    return sort_best_first(results), search["metric"]


def _make_result(number: int, trial: FrozenTrial, search: Mapping[str, Any]) -> TrialResult:
    """The result of a trial, by its latest attempt."""
    curve = trial.intermediate_values
    value = trial.value if trial.value is not None else max(curve.values(), default=math.nan)
    return TrialResult(
        name=f"trial_{number:04d}",
        folder=trial.user_attrs.get("folder", "-"),
        status=STATUSES.get(trial.state.name, "failed" if "reason" in trial.user_attrs else "stopped"),
        reason=trial.user_attrs.get("reason", ""),
        options=trial.user_attrs.get("options", {}),
        parameters=suggest(trial, search["space"]) if trial.params else {},
        curve=curve,
        value=value,
        best_epoch=next((epoch for epoch, reached in curve.items() if reached == value), 0),
    )
