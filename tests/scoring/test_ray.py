"""docs/scale.md's lines for Ray Data, on a local cluster of two workers of which one is killed, beside predict.py."""

import importlib.util
import os
import secrets
import signal
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
from helpers.data import make_pictures
from helpers.networks import make_weights

import predict

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="no ray: requirements/scale.txt"),
]
COMMAND = predict
ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
CLUSTER = """
import ray

ray.init(num_cpus=3, object_store_memory=2**28, include_dashboard=False, _temp_dir={!r})
"""


@pytest.fixture
def start(tmp_path):
    """start(*words): the page's lines as a process that has a cluster of its own; all of its processes end with the test."""
    began = []
    settings = {
        "PYTHONPATH": str(ROOT),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
    }
    with tempfile.TemporaryDirectory() as place:  # below tmp_path the names of its sockets would be too long

        def go(*words):
            program = tmp_path / "score_ray.py"
            program.write_text(CLUSTER.format(place) + code())
            with open(tmp_path / "log", "wb") as log:
                words = [sys.executable, program, *words]
                began.append(psutil.Popen(words, env=os.environ | settings, stdout=log, stderr=log))
            return began[0]

        yield go
        for process in began:
            family = [process, *process.children(recursive=True)] if process.is_running() else []
            for one in family:
                with suppress(psutil.NoSuchProcess):
                    one.kill()
            psutil.wait_procs(family, 10)


def code():
    """The page's lines."""
    rest = PAGE[PAGE.index("# score_ray.py") :]
    return rest[: rest.index("\n```")]


def workers(process):
    """The numbers of the processes that hold a network."""
    found = set()
    for child in process.children(recursive=True):
        with suppress(psutil.NoSuchProcess, IndexError):
            if "ScoreBatch" in child.cmdline()[0]:
                found.add(child.pid)
    return found


def test_scores_are_those_of_predict_though_a_worker_is_killed(tmp_path, start, command):
    album, weights, out = (
        tmp_path / "album",
        make_weights(tmp_path / "w.pth", model="eat_nano"),
        tmp_path / "out",
    )
    make_pictures(album, [f"{i:03}.jpg" for i in range(600)])
    (album / "empty.jpg").touch()
    (album / "cut.jpg").write_bytes((album / "000.jpg").read_bytes()[:800])
    process, seen = start(album, weights, out), set()
    table = tmp_path / "t.csv"
    assert command(album, "--weights", weights, "--out", table, "--num_workers", 0)[0] == 1
    expected = pd.read_csv(table, keep_default_na=False).set_index("image").sort_index()
    deadline = time.monotonic() + 300
    while process.poll() is None:
        assert time.monotonic() < deadline, (tmp_path / "log").read_text()
        now = workers(process)
        if any(out.glob("*.parquet")):
            if not seen:
                os.kill(max(now), signal.SIGKILL)
            seen |= now
        time.sleep(0.1)
    assert process.returncode == 0, (tmp_path / "log").read_text()
    assert len(seen) == 3  # two, and the one that took the place of the killed one
    found = pd.read_parquet(out).set_index("image").sort_index()
    assert list(found.index) == list(expected.index)
    assert found["error"].tolist() == expected["error"].tolist()
    assert found["error"].value_counts().to_dict() == {
        "": 600,
        "the file has 0 bytes": 1,
        "the file is cut short": 1,
    }
    np.testing.assert_allclose(found["score"], pd.to_numeric(expected["score"]), rtol=0, atol=1e-6)
    assert found["score"].std() > 1e-3
