"""The report page: what is written into it, by predict.py and by --eval. test_page_in_browser.py reads it in a browser."""

import base64
import io
import re
from html.parser import HTMLParser
from urllib.parse import unquote

import numpy as np
import pandas as pd
import pytest
from helpers.data import arguments, make_pictures
from helpers.pages import ODD, VOTES, a_page, data_of, evaluate
from PIL import Image

from iaa.errors import Interrupted
from iaa.reports import charts
from iaa.reports.html_page import (
    CHUNK,
    LARGE,
    LARGE_UP_TO,
    SMALL,
    Page,
    Photo,
    write_page,
)
from iaa.reports.test_report import choose_rows


def written(path, page, photos, **given):
    write_page(path, page, photos, **given)
    return path.read_text(encoding="utf-8")


def thumbnails_of(text):
    chunks = re.findall(r'<script type="text/plain" class="thumbnails">(.*?)</script>', text, re.DOTALL)
    return [line for chunk in chunks for line in chunk.split("\n")]


def test_names_of_any_kind_stay_names(tmp_path):
    names = [ODD, "写真 фото.jpg", "broken\udcff.jpg", "<!-- thumbnails -->", "{{script}}"]
    page = Page("A title & more", {ODD: "\udc80"}, (1, 10), notes=[ODD])
    text = written(tmp_path / "page.html", page, [Photo(name, None, 5.0, error=name) for name in names])
    found = data_of(text)
    assert found["photos"]["image"] == names
    assert found["facts"] == [[ODD, "\udc80"]]

    class Tags(HTMLParser):
        seen = ()

        def handle_starttag(self, tag, attrs):
            self.seen = (*self.seen, tag)

    tags = Tags()
    tags.feed(text)
    assert "b" not in tags.seen
    assert tags.seen.count("script") == 3  # one chunk of thumbnails, the data, the script


def test_a_page_of_no_photographs_may_load_nothing(tmp_path):
    text = written(tmp_path / "page.html", a_page(), [])
    assert data_of(text)["charts"] == []
    assert thumbnails_of(text) == []
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)[1]
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert "unsafe" not in policy
    assert set(re.findall(r"https?://[\w./]+", text)) == {
        "http://www.w3.org/2000/svg"
    }  # SVG's name, no place
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", text)


def test_numbers_that_are_none_are_null(tmp_path):
    photos = [
        Photo("a.jpg", None, np.float32(5.25), votes=VOTES.astype(np.float32), other=np.nan),
        Photo("b.jpg", None, None, error="cut short", votes=[np.inf]),
        Photo("c.jpg", None, 6.0, numbers={"spread": np.nan, "below": 0.25}),
    ]
    page = a_page(figures=[["", "this run"], ["SRCC", "-"]])
    found = data_of(written(tmp_path / "page.html", page, photos))
    assert found["photos"]["score"] == [5.25, None, 6.0]
    assert found["photos"]["other"] == [None] * 3
    assert found["photos"]["votes"][:2] == [[round(v, 4) for v in VOTES], [None]]
    assert found["figures"] == [["", "this run"], ["SRCC", "-"]]
    assert [(n["label"], n["values"]) for n in found["numbers"]] == [
        ("Share below", [None, None, 0.25]),
        ("Spread of votes", [None] * 3),
    ]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder with a landscape and a portrait picture, and one that is cut short."""
    folder = tmp_path_factory.mktemp("pictures")
    make_pictures(folder, ["wide.jpg"], size=(600, 900))
    make_pictures(folder, ["tall.png"], size=(400, 200))
    (folder / "cut.jpg").write_bytes((folder / "wide.jpg").read_bytes()[:900])
    return folder


def opened(line):
    return Image.open(io.BytesIO(base64.b64decode(line)))


def test_thumbnails_keep_the_aspect_ratio_and_what_cannot_be_read_has_none(tmp_path, pictures):
    paths = [pictures / "wide.jpg", pictures / "tall.png", pictures / "cut.jpg", pictures / "gone.jpg", None]
    photos = [Photo(str(path), path, 5.0) for path in paths]
    wide, tall, *none = thumbnails_of(written(tmp_path / "page.html", a_page(), photos))
    assert opened(wide).size == (LARGE, LARGE * 2 // 3)
    assert opened(tall).size == (LARGE // 2, LARGE)
    assert none == [""] * 3
    assert opened(wide).format == "JPEG"


@pytest.mark.slow
def test_a_long_page_has_small_thumbnails_in_order_by_workers_as_without(tmp_path):
    make_pictures(tmp_path, ["wide.jpg"], size=(100, 200))
    make_pictures(tmp_path, ["tall.jpg"], size=(200, 100))
    paths = [tmp_path / ("tall.jpg" if row % 3 else "wide.jpg") for row in range(LARGE_UP_TO + 1)]
    photos = [Photo(path.name, path, 5.0) for path in paths]
    text, by_workers = (written(tmp_path / f"{n}.html", a_page(), photos, num_workers=n) for n in (0, 2))
    assert len(re.findall('class="thumbnails"', text)) == -(-len(paths) // CHUNK)
    wide = [opened(line).size[0] == SMALL for line in thumbnails_of(text)]
    assert wide == [path.name == "wide.jpg" for path in paths]
    assert text == by_workers


def test_a_signal_leaves_no_page(tmp_path, pictures):
    class Asked:
        received = 15

    with pytest.raises(Interrupted):
        write_page(tmp_path / "p.html", a_page(), [Photo("a", pictures / "wide.jpg", 5.0)], stop=Asked())
    assert list(tmp_path.iterdir()) == []


def test_links_are_relative_where_page_and_picture_lie_together(tmp_path):
    (tmp_path / "out").mkdir()
    paths = [tmp_path / "out" / "sub" / "a #1?.jpg", tmp_path / "elsewhere" / "b%.jpg", None]
    text = written(tmp_path / "out" / "p.html", a_page(), [Photo("x", path, 5.0) for path in paths])
    near, far, none = data_of(text)["photos"]["link"]
    assert near == "sub/a%20%231%3F.jpg"
    assert far == f"file://{tmp_path}/elsewhere/b%25.jpg"
    assert unquote(far).endswith(str(paths[1]))
    assert none is None


def test_attention_is_in_multiples_of_an_even_share(tmp_path):
    even, one = np.full((4, 4), 1 / 16), np.zeros((4, 4))
    one[1, 2] = 1
    photos = [Photo("a", None, 5.0, attention=values) for values in (even, one, None)]
    found = data_of(written(tmp_path / "p.html", a_page(), photos))
    limit = found["attention_limit"]
    assert limit == pytest.approx(np.quantile([1, 16], 0.9))
    maps = found["photos"]["attention"]
    assert maps[0] == [[round(255 / limit)] * 4] * 4
    assert maps[1] == [[0] * 4, [0, 0, 255, 0], [0] * 4, [0] * 4]
    assert maps[2] is None


def svg_of(chart):
    return base64.b64decode(chart["picture"].removeprefix("data:image/svg+xml;base64,")).decode()


def test_a_distribution_is_of_all_scores():
    scores = {"predicted score": np.array([1.0, 2, 3, 10]), "true score": np.full(4, 5.0)}
    found = charts.distribution(scores)
    predicted = (
        "predicted score: mean 4, median 2.5, half of them between 1.75 and 4.75, all between 1 and 10."
    )
    assert found["text"].startswith(f"4 photographs. {predicted} true score: mean 5, ")
    assert ">true score<" in svg_of(found)  # as text


def test_a_scatter_marks_each_photograph():
    scores, true = np.array([1.0, 5, 9]), np.array([2.0, 5, 8])
    found = charts.scatter(scores, true, ("predicted score", "true score"))
    cells = np.asarray(opened(re.search(r"data:image/png;base64,\s*([^\"]+)", svg_of(found))[1]))[..., 3]
    rows, columns = np.nonzero(cells)
    shares = [np.floor((values - 1) / 8 * 60).clip(max=59) for values in (scores, true)]
    assert len(rows) == 3
    assert sorted(columns / cells.shape[1] * 60 // 1) == sorted(shares[1])
    assert ">true score<" in svg_of(found)
    assert found == charts.scatter(scores, true, ("predicted score", "true score"))


def test_choose_takes_the_worst_errors_and_a_sample():
    errors = np.random.default_rng(0).normal(size=1000)
    rows = choose_rows(errors, 100)
    assert len(rows) == len(set(rows)) == 100
    assert (np.diff(rows) > 0).all()
    assert set(np.argsort(-np.abs(errors))[:50]) <= set(rows)
    assert rows.tolist() == choose_rows(errors, 100).tolist()
    others = [set(choose_rows(errors, 100, seed=seed)) for seed in (0, 1)]
    assert others[0] & others[1] != others[0]
    assert [len(choose_rows(np.arange(9.0), limit)) for limit in (0, 1, 9, 10)] == [0, 1, 9, 9]


def test_eval_writes_a_page_with_true_scores_and_votes(ava, run):
    status, result, _ = evaluate(run, ava)
    assert status == 0
    found = data_of((ava / "e" / "report.html").read_text())
    table = pd.read_csv(ava / "e" / "predictions.csv")
    assert result["files"]["page"] == str(ava / "e" / "report.html")
    assert found["photos"]["score"] == pytest.approx(table["predicted_score"].tolist(), abs=1e-5)
    assert found["photos"]["other"] == pytest.approx(table["true_score"].tolist(), abs=1e-5)
    assert [sum(votes) for votes in found["photos"]["other_votes"]] == pytest.approx([1] * 6, abs=1e-3)
    rows = {row[0]: row[1:] for row in found["figures"]}
    published = [rows[name][2].split(",")[0] for name in ("SRCC", "PLCC", "accuracy")]
    assert published == ["0.7596", "0.7710", "0.8259"]
    low, high = result["intervals"]["srcc"]
    assert rows["SRCC"][:2] == [f"{result['srcc']:.4f}", f"{low:.4f} to {high:.4f}"]
    assert "not the published protocol: eat_test, not eat_base" in found["remarks"]


def test_evals_page_is_on_the_datasets_own_scale(scored, run):
    assert evaluate(run, scored, "tad66k", report_images=4)[0] == 0
    text = (scored / "e" / "report.html").read_text()
    found, table = data_of(text), pd.read_csv(scored / "test.csv").set_index("image")["score"]
    assert found["photos"]["other"] == pytest.approx(table[found["photos"]["image"]].tolist())
    assert {"MAE on 0 to 1", "RMSE on 0 to 1"} < {row[0] for row in found["figures"]}
    assert (found["range"], len(thumbnails_of(text))) == ([0, 10], 4)
    assert found["notes"][0].startswith("4 of 6 photographs are shown")
    assert [chart["text"].split(" ")[0] for chart in found["charts"]] == ["6", "6"]


def test_eval_without_a_page_over_one_and_a_page_in_training(ava, run):
    page = ava / "e" / "report.html"
    assert evaluate(run, ava)[0] == 0
    assert page.exists()
    status, result, _ = evaluate(run, ava, overwrite=True, report_images=0)
    assert (status, "page" in result["files"], page.exists()) == (0, False, False)
    status, _, err = run(arguments(ava, experiment_dir_name=ava / "t", report_images=5))
    assert (status, err.count("\n")) == (2, 1)
    assert "--report_images belongs to --eval" in err
