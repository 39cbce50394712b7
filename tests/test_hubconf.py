"""torch.hub's door, from another working folder: entries work after torch.hub has taken the folder from `sys.path`."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from common import make_pictures, make_weights

from iaa.scoring import Scorer

ROOT = Path(__file__).parent.parent
LOAD = "import json, sys, torch, numpy as np\nload = lambda *words, **more: torch.hub.load({root!r}, *words, source='local', **more)\n"


def in_another_folder(tmp_path, script):
    """The finished process of a script that has `load`, torch.hub.load of this repository."""
    script = LOAD.format(root=str(ROOT)) + script
    return subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False
    )


@pytest.mark.slow
@pytest.mark.usefixtures("nano")
def test_networks_and_scorer_work_after_load_has_returned(tmp_path):
    make_weights(tmp_path / "w.pth")
    make_pictures(tmp_path, ["a.png", "b.jpg"])
    np.save(tmp_path / "array.npy", np.zeros((20, 30, 3), np.uint8))
    done = in_another_folder(
        tmp_path,
        """
network = load("eat_nano", num_classes=1, interest_points="image")
scorer = load("scorer", "w.pth", device="cpu")
assert not any("hub" in path for path in sys.path)
shape = list(network(torch.zeros(2, 3, 224, 224)).shape)
scores, errors = scorer.each(["a.png", "b.jpg", "missing.jpg"])
one = scorer(np.load("array.npy"))
print(json.dumps([shape, scores.tolist(), errors, one, network.training]))
""",
    )
    assert done.returncode == 0, done.stderr
    shape, scores, errors, one, training = json.loads(done.stdout.splitlines()[-1])
    scorer = Scorer(tmp_path / "w.pth", device="cpu")
    assert (shape, training) == ([2, 1], False)
    assert scores[:2] == scorer([tmp_path / "a.png", tmp_path / "b.jpg"]).tolist()
    assert errors[:2] == ["", ""]
    assert "missing.jpg" in errors[2]
    assert one == scorer(np.load(tmp_path / "array.npy"))


def test_a_foreign_module_of_one_of_our_names_is_told_in_one_line(tmp_path):
    (tmp_path / "models.py").write_text("")
    script = "sys.path.insert(0, '.')\nimport models\ntry:\n    load('eat_nano')\nexcept ImportError as error:\n    print(error)"
    done = in_another_folder(tmp_path, script)
    assert done.stdout.count("\n") == 1
    assert "a module named 'models' is already imported" in done.stdout
