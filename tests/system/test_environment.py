"""Nonsense in the environment, closed streams, few open files: one line, or silence where nobody listens."""

import json
import os
import subprocess
import sys

import pytest
from helpers.runs import ROOT

from iaa.runtime.files import read_json_object


@pytest.mark.parametrize(
    ("variables", "problem"),
    [
        ({"RANK": "abc"}, "RANK=abc in the environment is no number from 0 on"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE=0 in the environment is no number from 1 on"),
        ({"RANK": "3"}, "RANK=3 and WORLD_SIZE=1 in the environment contradict each other"),
        ({"TORCHELASTIC_RESTART_COUNT": "x"}, "TORCHELASTIC_RESTART_COUNT=x in the environment"),
        (
            {"WORLD_SIZE": "2"},
            "WORLD_SIZE=2 is in the environment without RANK, MASTER_ADDR, MASTER_PORT; unset it",
        ),
        (
            {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "x"},
            "the processes do not reach each other",
        ),
        ({"EAT_TRIAL": "{"}, "EAT_TRIAL in the environment is not of `search.py run`; unset it"),
        ({"EAT_TRIAL": "[" * 100_000}, "EAT_TRIAL in the environment is not of `search.py run`; unset it"),
        ({"EAT_TRIAL": '{"parameters": 3}'}, "EAT_TRIAL in the environment is not of `search.py run`"),
    ],
)
def test_nonsense_in_the_environment_is_one_line(run, monkeypatch, variables, problem):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("iaa.searching.nni_trial.end_with_parent", lambda: None)
    status, _, err = run(["--gpu_id", "cpu"])
    assert (status, err.count("\n")) == (2, 1), err
    assert problem in err


def test_a_trial_of_an_unknown_platform_is_one_line(run, monkeypatch, tmp_path):
    pytest.importorskip("nni")
    monkeypatch.chdir(tmp_path)
    program = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import main_nni; sys.exit(main_nni.main([]))"
    variables = {"NNI_TRIAL_JOB_ID": "t", "NNI_PLATFORM": "nonsense"}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=os.environ | variables, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "NNI gives no parameters" in done.stderr
    assert "Traceback" not in done.stderr


def test_json_nested_too_deep_is_one_line(run, tmp_path):
    path = tmp_path / "deep.json"
    path.write_text('{"a": ' * 100_000)
    status, _, err = run(["--options", path])
    assert (status, err.count("\n")) == (2, 1)
    assert "deep.json: cannot be read as options" in err
    assert read_json_object(path) == {}


@pytest.mark.parametrize(
    ("shell", "status", "said"),
    [
        ("exec {} >&-", 0, ""),
        ("exec {} 2>&-", 2, ""),
        ("exec {} <&- >&- 2>&-", 2, ""),
        (
            "ulimit -n 20; exec {}",
            2,
            "only 20 files may be open at a time; `ulimit -n 4096` allows more",
        ),
        ("{} | true; exit ${{PIPESTATUS[0]}}", 141, ""),
    ],
)
def test_closed_streams_and_few_files(tmp_path, shell, status, said):
    folder = tmp_path / "t"
    folder.mkdir()
    (folder / "run.json").write_text(
        json.dumps({"parameters": {}, "reason": "x" * 200_000, "status": "failed"})
    )
    where = tmp_path if status != 2 or said else tmp_path / "nowhere"
    command = shell.format(f"{sys.executable} {ROOT}/search.py show {where}")
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (
        status,
        f"search.py: {said}\n" if said else "",
    )
