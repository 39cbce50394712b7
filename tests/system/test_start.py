"""A command answers before it imports what takes seconds."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SLOW = {"torch", "torchvision", "timm", "numpy", "pandas", "scipy", "PIL", "matplotlib", "nni", "optuna"}
COMMANDS = ["main_nni", "predict", "prepare_data", "search", "export", "compare"]


def python(script):
    """What a script in a process of its own prints: (output, errors)."""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    return done.stdout, done.stderr


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(("word", "status"), [("--help", 0), ("--no_such_option", 2)])
def test_arguments_are_read_before_slow_imports(command, word, status):
    script = f"""
import json, sys, {command}
try:
    status = {command}.main([{word!r}])
except SystemExit as stop:
    status = stop.code
print(json.dumps([status, list(sys.modules)]))
"""
    found, modules = json.loads(python(script)[0].splitlines()[-1])
    assert found == status
    assert not SLOW & set(modules)
    assert len(modules) < 200


@pytest.mark.parametrize(
    ("command", "words", "problem"),
    [
        ("main_nni", ["--init_lr", "-1"], "--init_lr -1 must be greater than 0"),
        ("main_nni", ["--eval", "--dataset", "demo"], "--eval needs --path_to_model_weight"),
        ("predict", ["--weights", "w.pth"], "no photographs: give files, folders, globs, or --list FILE"),
    ],
)
def test_wrong_options_are_refused_before_slow_imports(command, words, problem):
    script = f"import sys, {command}; status = {command}.main({words}); print('torch' in sys.modules, status)"
    out, err = python(script)
    assert out.split() == ["False", "2"]
    assert problem in err


def test_predict_names_networks_before_slow_imports():
    script = "import sys, predict; status = predict.main(['a.jpg']); print('torch' in sys.modules, status)"
    out, err = python(script)
    assert out.split() == ["False", "2"]
    assert err.count("\n") == 1
    for name in ("biq2021", "authors' checkpoints", "--freeze_backbone"):
        assert name in err


def test_main_nni_says_that_it_starts_before_slow_imports():
    script = "import sys, main_nni; sys.modules['iaa.experiment'] = None; main_nni.main([])"
    assert "loading PyTorch" in python(script)[1].splitlines()[0]
