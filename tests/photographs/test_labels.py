"""From a CSV's rows to labels: votes, scores, scales and thresholds."""

import numpy as np
import pandas as pd
import pytest
from helpers.data import AVA_COLUMNS

from iaa.errors import InputError
from iaa.photographs.labels import FORMATS, csv_format, read_labels
from util import compute_metrics


def test_ava_columns_are_votes_of_1_to_10(ava):
    labels = read_labels(ava / "test.csv", FORMATS["ava"])
    table = pd.read_csv(ava / "test.csv")
    assert labels.images.tolist() == [f"{i}.jpg" for i in table["image_id"]]
    votes = table[[f"score{i}" for i in range(2, 12)]].to_numpy()
    np.testing.assert_allclose(labels.targets, votes / votes.sum(1, keepdims=True), rtol=1e-6)


def test_tad66k_scores_are_tenths(scored):
    labels = read_labels(scored / "test.csv", FORMATS["tad66k"])
    np.testing.assert_allclose(
        labels.targets[:, 0], pd.read_csv(scored / "test.csv")["score"] / 10, rtol=1e-6
    )


def test_any_csv_with_vote_columns(tmp_path):
    (tmp_path / "a.csv").write_text("note,vote_3,vote_1,image,vote_2\nx,1,2,a.png,1\n")
    form = csv_format(tmp_path / "a.csv", (0, 1), None)
    assert form.vote_columns == ("vote_1", "vote_2", "vote_3")
    assert form.threshold == 2.0
    assert read_labels(tmp_path / "a.csv", form).targets.tolist() == [[0.5, 0.25, 0.25]]


def test_any_csv_with_scores_on_a_scale(tmp_path):
    (tmp_path / "a.csv").write_text("image,score\na.png,3\n")
    form = csv_format(tmp_path / "a.csv", (1, 5), None)
    assert read_labels(tmp_path / "a.csv", form).targets.tolist() == [[0.5]]
    assert form.threshold == 0.5
    assert csv_format(tmp_path / "a.csv", (1, 5), 4).threshold == 0.75


def test_byte_order_mark_windows_lines_blanks_and_spaces_are_read(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbfimage, score\r\n a.jpg , 2.5\r\n\r\nb.jpg,5\r\n\r\n")
    labels = read_labels(tmp_path / "a.csv", FORMATS["tad66k"])
    assert labels.images.tolist() == ["a.jpg", "b.jpg"]
    assert labels.targets.tolist() == [[0.25], [0.5]]


def test_a_mean_opinion_of_exactly_5_is_low(tmp_path):
    """Its distribution in float32 need not sum to exactly 5; the votes do."""
    rows = [
        [0, 0, 1, 0, 0, 0, 1, 0, 0, 0],
        [0, 0, 1, 1, 1, 1, 1, 0, 0, 0],
        [0, 3, 0, 7, 5, 7, 0, 3, 0, 0],
        [0, 0, 0, 0, 3, 4, 0, 0, 0, 0],
    ]
    table = pd.DataFrame(rows, columns=AVA_COLUMNS[1:])
    table.insert(0, "image_id", range(len(rows)))
    table.to_csv(tmp_path / "a.csv", index=False)
    labels = read_labels(tmp_path / "a.csv", FORMATS["ava"])
    assert labels.mos.tolist() == [5.0, 5.0, 5.0, pytest.approx(39 / 7)]
    predicted = np.zeros((4, 10))
    predicted[:, 4] = [0.9, 0.8, 0.7, 1.5]  # scores 4.5, 4, 3.5 and 7.5
    assert compute_metrics(FORMATS["ava"].match_scores(predicted, labels))["accuracy"] == 1.0


def test_a_score_at_a_given_threshold_is_low(tmp_path):
    (tmp_path / "a.csv").write_text("image,score\na.png,0.6\nb.png,0.7\n")
    form = csv_format(tmp_path / "a.csv", (0.0, 1.0), 0.6)
    mos = read_labels(tmp_path / "a.csv", form).mos
    assert (mos > form.threshold).tolist() == [False, True]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,score, score\na,1,2\n", "column score stands there more than once"),
        ("image,image ,score\na,b,1\n", "column image stands there more than once"),
        ("image,vote_1,vote_01\na,1,2\n", "not numbered one after the other"),
        ("image,1,2,4\na,1,2,3\n", "not numbered one after the other"),
        (
            "image,score\na.jpg,1,2\nb.jpg,0\n",
            "line 2: 3 columns, not 2; a value with a ',' in it needs quotes",
        ),
        ("image,1,2\na,1e308,1e308\n", "too many votes"),
        ("image,score\n./a.jpg,1\na.jpg,1\n", "'a.jpg': stands there a second time"),
    ],
)
def test_ambiguous_csvs_are_refused(tmp_path, text, message):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        read_labels(tmp_path / "a.csv", csv_format(tmp_path / "a.csv", (0.0, 1.0), None))


def test_a_scale_that_does_not_fit_the_columns_is_refused(tmp_path):
    (tmp_path / "votes.csv").write_text("image,1,2\na,1,2\n")
    with pytest.raises(InputError, match="--score_max belong"):
        csv_format(tmp_path / "votes.csv", (0.0, 5.0), None)
    with pytest.raises(InputError, match="--threshold 7 lies outside"):
        csv_format(tmp_path / "votes.csv", (0.0, 1.0), 7)
