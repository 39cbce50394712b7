"""The official label files: read in whatever way they are written; an error names what is not a label."""

import json

import numpy as np
import pandas as pd
import pytest
from helpers.data import make_pictures
from helpers.official_files import AVA_LINES, write

from iaa.photographs import official, preparation
from iaa.photographs.labels import AVA, FORMATS, read_labels


def many_ava_lines(count):
    rng = np.random.default_rng(0)
    return [
        f"{i} {i + 100} {' '.join(map(str, rng.integers(0, 60, 10) + 1))} 0 1 7" for i in range(1, count + 1)
    ]


def test_ava_becomes_the_released_schema(tmp_path, command):
    labels = write(tmp_path / "AVA.txt", "\n".join(many_ava_lines(255)))
    status, out, err = command(
        "ava", "--labels", labels, "--out", tmp_path / "a", "--split", "random", "--seed", 3
    )
    assert (status, err) == (0, "")
    tables = {split: pd.read_csv(tmp_path / "a" / f"{split}.csv") for split in ("train", "val", "test")}
    assert [len(table) for table in tables.values()] == [229, 13, 13]
    assert list(tables["val"].columns) == [AVA.image_column, *AVA.vote_columns, "tag1", "tag2", "tag3"]
    together = pd.concat(tables.values()).set_index("image_id").sort_index()
    for line in many_ava_lines(255):
        words = [int(word) for word in line.split()]
        assert together.loc[words[1]].tolist() == words[2:]
    assert "255 rows read, 255 kept" in out
    summary = json.loads((tmp_path / "a" / "summary.json").read_text())
    for split, table in tables.items():
        mos = read_labels(tmp_path / "a" / f"{split}.csv", AVA).mos
        assert summary["splits"][split]["images"] == len(table)
        assert summary["splits"][split]["mean"] == pytest.approx(mos.mean())
        assert summary["splits"][split]["spread"] == pytest.approx(mos.std())
        assert summary["splits"][split]["above_threshold"] == pytest.approx((mos > 5).mean())
    assert (tmp_path / "a" / "summary.txt").read_text().strip() in out


def test_the_released_counts_of_ava():
    """12,776 and 12,775 rows: 5 % of 255,510."""
    prepared = official.PreparedLabels(pd.DataFrame({"split": [""] * 255_510}), AVA, 0)
    preparation.split_at_random(prepared, 0.05, 0.05, 0)
    assert prepared.table["split"].value_counts().to_dict() == {
        "train": 229_959,
        "test": 12_776,
        "val": 12_775,
    }


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("3 954184 0 0 4 8 41 56 10 3 4 4 0 0", "14 columns, not 15"),
        ("3 954184 0 0 4 8 x 56 10 3 4 4 0 0 1396", "votes of 5 = 'x': not a whole number"),
        ("3 954184 0 0 4 8 -1 56 10 3 4 4 0 0 1396", "votes of 5 = '-1': not a whole number"),
        ("3 954184 0 0 4 8 1.5 56 10 3 4 4 0 0 1396", "votes of 5 = '1.5'"),
        ("3 954184 0 0 4 8 ٣ 56 10 3 4 4 0 0 1396", "votes of 5 = '٣'"),
        ("3 954184 0 0 4 8 9999999999 56 10 3 4 4 0 0 1396", "votes of 5 = '9999999999'"),
        ("3 954184 0 0 0 0 0 0 0 0 0 0 0 0 1396", "image id = '954184': all votes are 0"),
        (
            "3 953619 0 1 5 17 38 36 15 6 5 2 1 22 1396",
            "image_id = '953619': stands there with another label",
        ),
        (b"\xff\xfe3\x00", "not UTF-8 text"),
    ],
)
def test_a_malformed_row_of_ava_is_named(tmp_path, command, line, message):
    line = line if isinstance(line, bytes) else line.encode()
    labels = write(tmp_path / "AVA.txt", "\n".join(AVA_LINES[:2]).encode() + b"\n\n" + line)
    status, out, err = command("ava", "--labels", labels, "--out", tmp_path / "a")
    assert (status, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert err.startswith(
        f"prepare_data.py: {labels}, line 4: {message}" if message != "not UTF-8 text" else "prepare"
    )
    assert message in err
    assert not (tmp_path / "a").exists()


@pytest.fixture
def tad66k(tmp_path):
    for place, rows in {
        "merge/train.csv": [f"a{i}.jpg,{i % 10}" for i in range(20)],
        "merge/test.csv": ["t0.jpg,9.9", "t1.jpg,0.1", "a0.jpg,0"],
    }.items():
        write(tmp_path / place, "\n".join(["image,score", *rows]))
    return tmp_path


def test_tad66k_keeps_the_official_test_set(tad66k, command):
    status, out, _ = command("tad66k", "--labels", tad66k, "--out", tad66k / "a")
    assert status == 0
    counts = [
        len(read_labels(tad66k / "a" / f"{split}.csv", FORMATS["tad66k"]))
        for split in ("train", "val", "test")
    ]
    assert counts == [17, 2, 3]
    assert "1 dropped: train rows of images that are in another split" in out
    assert (tad66k / "a" / "test.csv").read_text().splitlines()[1] == "t0.jpg,9.9"


@pytest.fixture
def flickr(tmp_path):
    """Three workers: one with 110 ratings, held out; the others with too few and too many."""
    ratings = [f" w1 , p{i}.jpg, {i % 5 + 1}" for i in range(110)]
    ratings += [f"w2,p{i}.jpg,3" for i in range(100, 300)] + [f"w3, p{i}.jpg ,1" for i in range(300, 320)]
    write(
        tmp_path / "workers.csv",
        " worker, imagePair, score\r\n" + "\r\n".join([*ratings, "w3,unknown.jpg,2"]),
    )
    write(
        tmp_path / "scores.txt",
        "\r\n".join(f"p{i}.jpg  {i / 400} " for i in range(330)) + "\r\np5.jpg 0.0125\r\n",
    )
    return tmp_path


def test_flickr_aes_holds_workers_out(flickr, command):
    words = ("--scores", flickr / "scores.txt", "--workers", flickr / "workers.csv", "--out", flickr / "a")
    status, out, _ = command("flickr_aes", *words)
    assert status == 0
    tables = {split: pd.read_csv(flickr / "a" / f"{split}.csv") for split in ("train", "val", "test")}
    assert tables["test"]["image"].tolist() == [f"p{i}.jpg" for i in range(110)]
    assert [len(table) for table in tables.values()] == [189, 21, 110]
    assert tables["test"]["score"].tolist() == [i / 400 for i in range(110)]
    assert "10 dropped: rated by no worker" in out
    assert "1 dropped: repeated, with the same score" in out


def test_flickr_aes_at_random(flickr, command):
    assert command("flickr_aes", "--scores", flickr / "scores.txt", "--out", flickr / "a")[0] == 0
    counts = [len(pd.read_csv(flickr / "a" / f"{split}.csv")) for split in ("train", "val", "test")]
    assert counts == [264, 33, 33]


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("scores.txt", "a.jpg 0.5\nb.jpg\n", "line 2: 1 columns, not 2"),
        ("scores.txt", "a.jpg 0.5\nb.jpg 1.5\n", "line 2: score = '1.5': scores are 0 to 1"),
        ("scores.txt", "a.jpg nan\n", "line 1: score = 'nan'"),
        ("scores.txt", "../a.jpg 0.5\n", "line 1: image = '../a.jpg': leaves the image folder"),
        (
            "scores.txt",
            "a.jpg 0.5\n\na.jpg 0.6\n",
            "line 3: image = 'a.jpg': stands there with another label",
        ),
        ("scores.txt", " \n", "empty; it needs rows"),
        ("workers.csv", "worker,score\na,1\n", "no column imagepair; found worker, score"),
        ("workers.csv", "worker,imagePair,score\na,b.jpg,6\n", "line 2: score = '6': scores are 1 to 5"),
        ("workers.csv", "worker,imagePair,score\na,b.jpg,5\n", "0 of 1 workers have 105 to 171 ratings"),
    ],
)
def test_a_malformed_row_of_flickr_aes_is_named(flickr, command, file, text, message):
    write(flickr / file, text)
    words = ("--scores", flickr / "scores.txt", "--workers", flickr / "workers.csv", "--out", flickr / "a")
    status, _, err = command("flickr_aes", *words)
    assert status == 2
    assert len(err.splitlines()) == 1
    assert message in err


def test_aadb_has_three_official_splits(tmp_path, command):
    for word, rows in {"Train": range(10), "Validation": range(10, 13), "TestNew": range(13, 15)}.items():
        text = "\n".join(f"farm{i}.jpg {i / 20}" for i in rows)
        write(tmp_path / f"imgList{word}Regression_score.txt", text)
    assert command("aadb", "--labels", tmp_path, "--out", tmp_path / "a")[0] == 0
    for split, count in (("train", 10), ("val", 3), ("test", 2)):
        assert len(read_labels(tmp_path / "a" / f"{split}.csv", FORMATS["aadb"])) == count


def test_para_has_pictures_in_sessions(tmp_path, command):
    header = "sessionId,imageName,userId,aestheticScore_mean\n"
    write(
        tmp_path / "PARA-GiaaTrain.csv",
        header + "".join(f"session{i},iaa_{i}.jpg,u,{1 + i / 5}\n" for i in range(20)),
    )
    write(tmp_path / "PARA-GiaaTest.csv", header + "session1,iaa_t.jpg,u,4.5\n")
    assert command("para", "--labels", tmp_path, "--out", tmp_path / "a")[0] == 0
    labels = read_labels(tmp_path / "a" / "test.csv", FORMATS["para"])
    assert (labels.images.tolist(), labels.mos.tolist()) == (["session1/iaa_t.jpg"], [0.875])
    assert len(read_labels(tmp_path / "a" / "val.csv", FORMATS["para"])) == 2


def test_a_repeated_row_of_ava_is_dropped_and_counted(tmp_path, command):
    lines = many_ava_lines(100)
    labels = write(tmp_path / "AVA.txt", "\n".join([*lines, lines[4]]))
    status, out, _ = command("ava", "--labels", labels, "--out", tmp_path / "a", "--split", "random")
    assert status == 0
    assert "1 dropped: repeated, with the same score" in out


def test_official_labels_are_not_written_over(tad66k, command):
    before = (tad66k / "merge" / "train.csv").read_bytes()
    status, _, err = command("tad66k", "--labels", tad66k, "--out", tad66k / "merge", "--overwrite")
    assert status == 2
    assert "train.csv: prepare_data.py did not write it; give another --out" in err
    assert (tad66k / "merge" / "train.csv").read_bytes() == before


def test_a_seed_is_a_split_and_csvs_are_not_written_over(tmp_path, command):
    labels = write(tmp_path / "AVA.txt", "\n".join(many_ava_lines(100)))
    words = ("ava", "--labels", labels, "--split", "random", "--out")
    assert (
        command(*words, tmp_path / "a", "--seed", 1)[0]
        == command(*words, tmp_path / "b", "--seed", 1)[0]
        == 0
    )
    before = (tmp_path / "a" / "test.csv").read_bytes()
    assert (tmp_path / "b" / "test.csv").read_bytes() == before
    status, _, err = command(*words, tmp_path / "a", "--seed", 2)
    assert status == 2
    assert "train.csv: is there already; give --overwrite or another --out" in err
    assert (tmp_path / "a" / "test.csv").read_bytes() == before
    assert command(*words, tmp_path / "a", "--seed", 2, "--overwrite")[0] == 0
    assert (tmp_path / "a" / "test.csv").read_bytes() != before


def test_rows_without_a_picture_are_left_out_and_counted(tmp_path, command):
    labels = write(tmp_path / "AVA.txt", "\n".join(many_ava_lines(100)))
    make_pictures(
        tmp_path / "images", [f"{i + 100}.{'JPG' if i % 2 else 'jpg'}" for i in range(1, 99)], (8, 8)
    )
    write(tmp_path / "images" / "107.JPG", "not a picture")
    write(tmp_path / "images" / "109.JPG", b"")
    words = f"ava --labels {labels} --split random --images {tmp_path}/images --num_workers 0".split()
    status, out, err = command(*words, "--out", tmp_path / "a")
    assert (status, err) == (0, "")
    assert "100 rows read, 96 kept" in out
    for reason in (
        "2 dropped: picture missing",
        "2 dropped: picture damaged",
    ):
        assert reason in out
    tables = [pd.read_csv(tmp_path / "a" / f"{split}.csv")["image_id"] for split in ("train", "val", "test")]
    assert set(pd.concat(tables)) == set(range(101, 199)) - {107, 109}
    status, out, _ = command(*words, "--out", tmp_path / "b", "--no_check")
    assert status == 0
    assert "100 rows read, 98 kept" in out
    for split in ("val", "test"):  # the seed decides, whatever is missing
        assert set(tables[1 if split == "val" else 2]) <= set(
            pd.read_csv(tmp_path / "b" / f"{split}.csv")["image_id"]
        )


def test_a_folder_without_any_of_the_pictures_is_told(tmp_path, command):
    labels = write(tmp_path / "AVA.txt", "\n".join(AVA_LINES))
    (tmp_path / "images").mkdir()
    for images, message in (
        ("images", "none of the 3 pictures is there, as 953619.jpg"),
        ("nowhere", "no such folder"),
    ):
        words = f"ava --labels {labels} --split random --images {tmp_path / images} --out {tmp_path}/a"
        status, _, err = command(*words.split())
        assert status == 2
        assert message in err
