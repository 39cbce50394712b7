"""docs/extending.md, done as it says: a dataset, a loss, two networks and a metric, in a copy of the program."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers.data import arguments, make_pictures

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
# File, what stands there, what takes its place; the lines themselves stand on the page.
EDITS = (
    ("iaa/photographs/labels.py", '    "tad66k": LabelFormat(', '    "mine": vote_format(', True),
    ("option.py", '    "csv": _TAD66K', '    "mine": _TAD66K | {"loss": "emd"', True),
    ("util.py", '    "emd": emd_loss,', '    "huber"', True),
    ("iaa/loss_terms.py", "NAMES = (*OF_VOTES,", 'NAMES = ("huber"', False),
    ("models/variants.py", 'SIZES = {"eat_nano": 224,', 'SIZES = {"eat_mine"', False),
    ("option.py", 'MODELS = ["eat_nano",', 'MODELS = ["eat_mine",', False),
    ("util.py", 'METRICS = ("srcc",', 'METRICS = ("bias",', False),
    ("util.py", "    return {name: float(value)", '    metrics["bias"]', True),
    ("iaa/evaluation/test_metrics.py", '    "srcc": "SRCC",', '    "bias": "bias",', True),
    ("iaa/evaluation/bootstrap.py", "errors = (np.abs(error),", "errors = (error,", False),
    ("iaa/evaluation/bootstrap.py", "p, t, pp, tt, pt, agree, absolute, squared, emd_r1, emd_r2 = means", "p, t, pp", False),
    ("iaa/evaluation/bootstrap.py", 'errors = {"mae": absolute,', 'errors = {"bias"', False),
)  # fmt: skip
SCORES = (
    ("iaa/photographs/labels.py", '    "tad66k": LabelFormat(', '    "mine": LabelFormat(', True),
    ("option.py", '    "csv": _TAD66K', '    "mine": _TAD66K | {"loss": "mse"', True),
)


def block(start, end="\n# "):
    """The page's code from `start` to the next comment or the block's end."""
    rest = PAGE[PAGE.index(start) :]
    return rest[: min(rest.index(end) if end in rest else len(rest), rest.index("\n```"))]


def copy_program(copy, edits):
    """A copy of the program with these edits, each by its line of the page."""
    ignored = shutil.ignore_patterns("docs", "tests", "data", "runs", ".*")
    shutil.copytree(ROOT, copy, ignore=ignored)
    for name, old, start, before in edits:
        (line,) = [line for line in PAGE.splitlines() if line.lstrip().startswith(start.lstrip())]
        path, new = copy / name, f"{line}\n{old}" if before else line.lstrip()
        text = path.read_text(encoding="utf-8")
        assert text.count(old) == 1, (name, old)
        path.write_text(text.replace(old, new), encoding="utf-8")
    return copy


@pytest.fixture
def program(tmp_path):
    """A copy of the program, extended by the whole page."""
    copy = copy_program(tmp_path / "program", EDITS)
    variants = copy / "models" / "variants.py"
    variants.write_text(
        variants.read_text(encoding="utf-8") + "\n\n" + block("@register_model\ndef eat_mine")
    )
    (copy / "models" / "mine.py").write_text(block("from timm.models"))
    with open(copy / "models" / "__init__.py", "a", encoding="utf-8") as file:
        file.write(block("from . import mine") + "\n")
    return copy


# A run of main_nni.py, the dataset's recipe, and what a network of timm's gives.
BOTH = """
import sys
import main_nni, models, option, torch
assert main_nni.main(sys.argv[1:]) == 0
network = models.create_model("timm/mine", 5)
print(option.RECIPES["mine"]["model"], option.RECIPES["mine"]["loss"])
print(network.img_size, *network(torch.zeros(2, 3, 224, 224)).shape)
"""


@pytest.fixture
def data(tmp_path):
    """A dataset in the format of the page."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 6), ("test", 6)):
        names = [f"{split}{i}" for i in range(count)]
        make_pictures(tmp_path / "images", [f"{name}.jpg" for name in names])
        votes = {f"c{level}": rng.integers(1, 30, count) for level in range(1, 6)}
        pd.DataFrame({"photo": names} | votes).to_csv(tmp_path / f"{split}.csv", index=False)
    return tmp_path


def run_python(program, *words):
    environment = os.environ | {"PYTHONPATH": str(program)}
    command = [sys.executable, *map(str, words)]
    ended = subprocess.run(command, cwd=program, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return ended


# The recipe's network and loss, and the labels of a dataset of scores.
READ = """
import json, sys
import option
from dataset import read_splits
from iaa.photographs.labels import FORMATS
folder, options = sys.argv[1], option.complete({"dataset": "mine", "path_to_images": "x", "path_to_save_csv": "x"})
splits = read_splits(folder, folder + "/images", FORMATS["mine"])
print(json.dumps([options.model, options.loss, splits.train.targets.tolist(), splits.test.images.tolist()]))
"""


@pytest.mark.slow
def test_a_dataset_of_ones_own_scores_is_read_and_has_its_recipe(data, tmp_path):
    for split in ("train", "val", "test"):
        table = pd.read_csv(data / f"{split}.csv")
        scores = np.linspace(1, 5, len(table))
        pd.DataFrame({"photo": table["photo"] + ".jpg", "score": scores}).to_csv(
            data / f"{split}.csv", index=False
        )
    program = copy_program(tmp_path / "program", SCORES)
    *found, targets, images = json.loads(run_python(program, "-c", READ, data).stdout)
    assert found == ["eat_nano", "mse"]
    np.testing.assert_allclose(targets, np.linspace(0, 1, 12)[:, None], rtol=1e-6)
    assert images == [f"test{i}.jpg" for i in range(6)]


@pytest.mark.slow
def test_a_run_with_a_dataset_a_loss_networks_and_a_metric_of_ones_own(program, data, tmp_path):
    ended = run_python(program, "-c", BOTH, *arguments(data, "mine", model="eat_mine", loss="huber"))
    *_, line, recipe, shape = ended.stdout.splitlines()
    assert recipe == "eat_nano emd"
    assert shape == "224 2 5"
    result = json.loads(line)
    table = pd.read_csv(tmp_path / "run" / "predictions.csv")
    assert [name for name in table if name.startswith("output")] == [f"output{i}" for i in range(1, 6)]
    assert result["bias"] == pytest.approx((table["predicted_score"] - table["true_score"]).mean(), abs=1e-5)
    low, high = result["intervals"]["bias"]
    assert low < result["bias"] < high
    assert "val_bias" in pd.read_csv(tmp_path / "run" / "metrics.csv")
    options = json.loads((tmp_path / "run" / "options.json").read_text())
    assert (options["model"], options["loss"]) == ("eat_mine", "huber")
