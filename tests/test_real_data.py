"""The real label files, where they are at hand: set EAT_REAL_DATA to a folder with ava/ and tad66k/."""

import os
from pathlib import Path

import numpy as np
import pytest

from labels import FORMATS, hold_out, read_labels
from util import scores

REAL = Path(os.environ.get("EAT_REAL_DATA", Path(__file__).parents[2] / "shared" / "data"))
pytestmark = pytest.mark.skipif(not REAL.is_dir(), reason="no real label files here")


@pytest.mark.parametrize(("name", "rows"), [("test.csv", 12776), ("val.csv", 12775)])
def test_real_ava_labels(name, rows):
    labels = read_labels(REAL / "ava" / name, FORMATS["ava"])
    assert len(labels) == rows
    np.testing.assert_allclose(labels.targets.sum(1), 1, rtol=1e-5)
    opinions = scores(labels.targets)
    assert 5.3 < opinions.mean() < 5.5  # AVA's known mean opinion is about 5.38
    assert 0.65 < (opinions > FORMATS["ava"].threshold).mean() < 0.76


@pytest.mark.parametrize(("name", "rows"), [("train.csv", 52248), ("test.csv", 14079)])
def test_real_tad66k_labels(name, rows):
    labels = read_labels(REAL / "tad66k" / name, FORMATS["tad66k"])
    assert len(labels) == rows
    assert labels.images[0].endswith(".jpg")
    assert 0.1 < labels.targets.min() < labels.targets.max() < 0.95


def test_real_tad66k_holds_out_a_tenth():
    train, val = hold_out(read_labels(REAL / "tad66k" / "train.csv", FORMATS["tad66k"]), 0.1, seed=0)
    assert (len(train), len(val)) == (47023, 5225)
    assert not set(train.images) & set(val.images)


def test_real_photographs_votes():
    labels = read_labels(REAL / "ava" / "photos.csv", FORMATS["ava"])
    assert scores(labels.targets) == pytest.approx([5.1554, 4.7991], abs=1e-4)
