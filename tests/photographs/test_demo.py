"""The demo data."""

import numpy as np
import pytest
from helpers.data import make_pictures

from dataset import read_splits
from iaa.errors import InputError
from iaa.photographs import demo
from iaa.photographs.labels import FORMATS


def test_demo_is_ava_with_votes_that_follow_the_damage(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "COUNTS", {"train": 30, "val": 10, "test": 10})
    assert demo.build(tmp_path, tmp_path / "images")
    splits = read_splits(tmp_path, tmp_path / "images", FORMATS["demo"])
    assert [len(s) for s in (splits.train, splits.val, splits.test)] == [30, 10, 10]
    assert not splits.notes
    first = {p.name: p.read_bytes() for p in (tmp_path / "images").glob("*.jpg")}
    assert not demo.build(tmp_path, tmp_path / "images")
    (tmp_path / "demo_version.txt").write_text("older")
    (tmp_path / "images" / "1.jpg").write_bytes(b"damaged")
    assert demo.build(tmp_path, tmp_path / "images")
    assert {p.name: p.read_bytes() for p in (tmp_path / "images").glob("*.jpg")} == first
    none, full = np.zeros(5), np.ones(5)
    assert demo.mean_opinion(none) == 9
    assert demo.mean_opinion(full) == 1
    for kind in range(5):
        some = none.copy()
        some[kind] = 0.5
        assert demo.mean_opinion(some) < 9


def test_demo_splits_share_no_pixel():
    bands = [(band, split) for split, bands in demo.BANDS.items() for band in bands]
    for (left, right), split in bands:
        assert right - left >= demo.CROP[1]
        for (other_left, other_right), other in bands:
            assert split == other or right <= other_left or other_right <= left


def test_demo_never_writes_over_other_files(tmp_path):
    (tmp_path / "mine.csv").write_text("mine")
    with pytest.raises(InputError, match="holds files that are not the demo's"):
        demo.build(tmp_path, tmp_path / "images")
    make_pictures(tmp_path / "images", ["1.jpg"])
    (tmp_path / "demo_version.txt").write_text("being built")
    with pytest.raises(InputError, match="images: holds files that are not the demo's"):
        demo.build(tmp_path, tmp_path / "images")
