"""What predict.py puts on a page: which photographs, and what of them. How the page behaves is test_html_page.py's."""

import re

import numpy as np
import pytest
from helpers.pages import data_of

import predict
from iaa.reports.gallery import Gallery
from iaa.scoring.table import read_rows

COMMAND = predict
CPU = ("--gpu_id", "cpu", "--num_workers", 0)


def rows_of(scores):
    return [
        {"image": f"{i}.png", "score": score, "error": "" if score is not None else "bad"}
        for i, score in enumerate(scores)
    ]


def content_of(page):
    return data_of(page.read_text(encoding="utf-8"))


def test_a_gallery_shows_all_while_it_can():
    gallery = Gallery(10)
    rows = rows_of([3, None, 1, 2])
    for row in rows:
        gallery.add(row, np.ones((2, 2)))
    assert [row for row, _ in gallery.chosen()] == rows
    assert list(gallery.scores) == [3, 1, 2]
    assert gallery.chosen()[0][1].dtype == np.float16


@pytest.mark.parametrize("limit", [1, 7, 50])
def test_a_gallery_shows_the_best_the_worst_and_a_sample_of_more(limit):
    gallery, fifth = Gallery(limit), limit // 5
    for row in rows_of([None, *np.random.default_rng(0).permutation(1000).astype(float).tolist()]):
        gallery.add(row)
    shown = [row for row, _ in gallery.chosen()]
    numbers = [int(row["image"][:-4]) for row in shown]
    assert numbers == sorted(set(numbers))
    assert len(shown) == limit
    extremes = [*range(fifth), *range(1000 - fifth, 1000)]
    assert {row["score"] for row in shown} >= set(map(float, extremes))
    assert (len(gallery.scores), gallery.count) == (1000, 1001)


def test_the_page_of_predict(album, weights, tmp_path, command):
    (album / "bad.png").write_text("no picture")
    page, out = tmp_path / "page.html", tmp_path / "s.csv"
    status, _, err = command(album, "--weights", weights, "--out", out, "--report", page, *CPU)
    assert status == 1, err
    text, content = page.read_text(encoding="utf-8"), content_of(page)
    photos, rows = content["photos"], list(read_rows(out))
    assert photos["error"][2] == "no decoder knows the file"
    assert photos["image"] == [row["image"] for row in rows]
    expected = [np.nan if row["score"] is None else row["score"] for row in rows]
    np.testing.assert_allclose(np.array(photos["score"], float), expected, atol=1e-4)
    votes = [[row[f"vote{level}"] for level in range(1, 11)] for row in rows if row["score"] is not None]
    np.testing.assert_allclose([shown for shown in photos["votes"] if shown], votes, atol=1e-4)
    assert "://" not in re.sub(r"http://www.w3.org/\d+/svg", "", text)  # it asks for nothing


def test_appended_rows_are_on_the_page_with_those_before(album, weights, tmp_path, command):
    page, out = tmp_path / "page.html", tmp_path / "s.csv"
    assert command(album / "a.jpg", "--weights", weights, "--report", page, "--out", out, *CPU)[0] == 0
    assert command(album, "--weights", weights, "--report", page, "--out", out, "--append", *CPU)[0] == 0
    text = page.read_text(encoding="utf-8")
    assert "Scores of 7 photographs" in text
    attention = content_of(page)["photos"]["attention"]
    assert [bool(values) for values in attention] == [False] + 6 * [True]  # rows have no attention maps
    assert len(list(read_rows(out))) == 7
