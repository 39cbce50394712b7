"""What predict.py puts on a page: which photographs, beside what. How the page behaves is test_html_page.py's."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers.networks import make_weights
from helpers.pages import data_of, evaluate
from scipy import stats

import predict
from iaa.networks.trained_network import load_network
from iaa.reports.gallery import Gallery, read_comparison, votes_of
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
    page, compared = tmp_path / "page.html", make_weights(tmp_path / "compared.pth", seed=3)
    report = ("--report", page, "--compare", compared)
    for name, network, more in (("score", weights, report), ("other", compared, ())):
        out = ("--out", tmp_path / f"{name}.csv")
        status, _, err = command(album, "--weights", network, *out, *more, *CPU)
        assert status == 1, err
    text, content = page.read_text(encoding="utf-8"), content_of(page)
    assert content["photos"]["error"][2] == "no decoder knows the file"
    for name in ("score", "other"):
        rows = list(read_rows(tmp_path / f"{name}.csv"))
        assert content["photos"]["image"] == [row["image"] for row in rows]
        expected = [np.nan if row["score"] is None else row["score"] for row in rows]
        np.testing.assert_allclose(np.array(content["photos"][name], float), expected, atol=1e-4)
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


def test_a_table_is_compared_by_path_or_name(tmp_path):
    table = tmp_path / "t.csv"
    table.write_text(
        "image,score,error,vote1,vote2\np/a.jpg,3,,0.25,0.75\nb.jpg,,bad,,\n/x/p/c.jpg,4,,0.5,0.5\n"
    )
    trained = load_network(make_weights(tmp_path / "w.pth"))
    other = read_comparison(table, trained, "cpu")
    assert other.scale == (1, 10)
    assert other.row("p/a.jpg")["score"] == 3
    assert other.row("/anywhere/p/a.jpg")["score"] == 3
    assert other.row("/anywhere/q/a.jpg") is None  # another photograph of that name
    assert votes_of(other.row("p/a.jpg")) == [0.25, 0.75]
    assert other.row("q/b.jpg")["score"] is None  # the table has names alone, as a run's predictions
    assert other.row("/x/p/c.jpg")["score"] == 4
    assert other.row("d.jpg") is None
    found = other.match(["/x/p/c.jpg", "q/p/a.jpg", "r/p/a.jpg", "b.jpg"])
    assert {name: row["score"] for name, row in found.items()} == {
        "/x/p/c.jpg": 4
    }  # one row fits two; one has no score


def test_scores_of_another_scale_are_mapped_to_the_pages(tmp_path, album, weights, command, caplog):
    page, table = tmp_path / "r.html", tmp_path / "t.csv"
    table.write_text("image,score\na.jpg,0\nd.webp,0.5\nc.png,1\nnowhere/e.bmp,1\n")
    (tmp_path / "t.csv.run.json").write_text('{"score_range": [0, 1]}')
    status, _, err = command(album, "--weights", weights, "--report", page, "--compare", table, *CPU)
    assert status == 0, err
    content = content_of(page)
    photos = pd.DataFrame(content["photos"]).set_index("image")
    compared = photos.loc[[str(album / name) for name in ("a.jpg", "d.webp", "c.png")]]
    assert compared["other"].tolist() == [1, 5.5, 10]
    srcc = stats.spearmanr(compared["score"], compared["other"]).statistic
    assert float(dict(content["facts"])["SRCC of both"]) == pytest.approx(srcc, abs=1e-4)
    notes = " ".join(content["notes"])
    assert "mapped linearly from 0 to 1" in notes
    assert "t.csv has a score of 3 of these 7 photographs." in notes
    assert "t.csv has a score of 3 of these 7 photographs." in caplog.text


def test_a_runs_predictions_are_compared_on_the_datasets_scale(scored, run, tmp_path):
    status, result, err = evaluate(run, scored, "tad66k")
    assert status == 0, err
    path = Path(result["files"]["predictions"])
    predictions = pd.read_csv(path)
    other = read_comparison(path, load_network(make_weights(tmp_path / "w.pth")), "cpu")
    assert other.scale == (0, 10)
    row, expected = other.row(f"images/{predictions['image'][2]}"), 10 * predictions["predicted_score"][2]
    assert row["score"] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    "content", ["image,other\na,1\n", "no,table\n", "image,score\na,b\n", "image,score\na,1,2\n"]
)
def test_what_is_no_table_is_refused(tmp_path, album, weights, command, content):
    (tmp_path / "t.csv").write_text(content)
    page = ("--report", tmp_path / "r.html", "--compare", tmp_path / "t.csv")
    status, _, err = command(album, "--weights", weights, *page, *CPU)
    assert (status, "table of scores" in err) == (2, True)
    assert not (tmp_path / "r.html").exists()
