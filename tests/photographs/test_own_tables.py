"""Tables of one's own labels, as `prepare_data.py csv` reads them."""

import pandas as pd
import pytest
from helpers.data import make_pictures
from helpers.official_files import write


def test_any_table_with_a_score(tmp_path, command):
    rows = "".join(f"x{i}\t{i}\t{'Test' if i % 5 == 0 else 'training'}\n" for i in range(20))
    labels = write(tmp_path / "t.csv", "file\tbeauty\tpart\n" + rows)
    words = "--image_column file --suffix .png --score_column beauty --split_column part --separator tab"
    status, out, _ = command(
        "csv", "--labels", labels, "--out", tmp_path / "a", *words.split(), "--score_max", 20
    )
    assert status == 0
    assert "above 10" in out
    assert pd.read_csv(tmp_path / "a" / "test.csv").to_dict("list") == {
        "image": ["x0.png", "x5.png", "x10.png", "x15.png"],
        "score": [0.0, 5.0, 10.0, 15.0],
    }


def test_any_tables_one_for_each_split(tmp_path, command):
    """Also as spreadsheets save them, with separators that separate nothing."""
    train = write(tmp_path / "l.csv", "File,MOS,,\n" + "".join(f"a{i}.jpg,0.5,,\n" for i in range(20)))
    test = write(tmp_path / "t.csv", "File,MOS\nt1.jpg,0.25,\na3.jpg,0.5\nt0.jpg,1\n")
    val = write(tmp_path / "v.csv", ",File,,MOS\n,v.jpg,,0\n")
    words = ["--image_column", "File", "--score_column", "MOS", "--labels", train, "--test_labels", test]
    status, out, err = command("csv", *words, "--out", tmp_path / "a")
    assert (status, err) == (0, "")
    assert "split: as the files say" in out
    assert "1 dropped: train rows of images that are in another split" in out
    assert (tmp_path / "a" / "test.csv").read_text() == "image,score\nt1.jpg,0.25\na3.jpg,0.5\nt0.jpg,1.0\n"
    drawn = pd.read_csv(tmp_path / "a" / "val.csv")["image"]
    rest = pd.read_csv(tmp_path / "a" / "train.csv")["image"]
    assert len(drawn) == 2
    assert {*drawn, *rest} == {f"a{i}.jpg" for i in range(20) if i != 3}
    assert command("csv", *words, "--val_labels", val, "--out", tmp_path / "b")[0] == 0
    assert pd.read_csv(tmp_path / "b" / "val.csv").to_dict("list") == {"image": ["v.jpg"], "score": [0]}
    assert len(pd.read_csv(tmp_path / "b" / "train.csv")) == 19
    status, _, err = command("csv", *words, "--out", tmp_path / "c", "--split_column", "File")
    assert (status, len(err.splitlines())) == (2, 1)
    assert "--split_column is for one table" in err


def test_any_table_with_votes(tmp_path, command):
    labels = write(
        tmp_path / "t.csv", "image,bad,fair,good\n" + "".join(f"x{i}.png,{i},1,2\n" for i in range(20))
    )
    status, _, _ = command(
        "csv", "--labels", labels, "--out", tmp_path / "a", "--vote_columns", "bad", "fair", "good"
    )
    assert status == 0
    table = pd.concat([pd.read_csv(tmp_path / "a" / f"{split}.csv") for split in ("train", "val", "test")])
    assert list(table.columns) == ["image", "vote1", "vote2", "vote3"]
    assert sorted(table["vote1"]) == list(range(20))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--score_column", "beauty"], "no column beauty; found image, score, part"),
        (["--split_column", "part"], "line 3: part = 'maybe': neither train, val nor test"),
        (["--score_max", "0.2"], "line 3: score = '0.5': scores are 0 to 0.2"),
        (["--vote_columns", "score", "part"], "line 2: part = 'train': not a number"),
        (["--score_column", "score", "--vote_columns", "a", "b"], "exclude each other"),
        (["--separator", "ab"], "--separator 'ab' is not one plain character, or tab"),
        (["--score_min", "5", "--score_max", "1"], "--score_min 5 is not below --score_max 1"),
        (["--seed", "-1"], "--seed -1 must be at least 0"),
        (["--val_share", "0.7"], "--val_share 0.7 must be between 0 and 0.5"),
        (["--labels", "nowhere.csv"], "nowhere.csv: no such file"),
        ([], "no rows are left for val.csv"),
    ],
)
def test_a_table_that_cannot_be_read_is_named(tmp_path, command, words, message):
    labels = write(tmp_path / "t.csv", "image,score,part\na.png,0.1,train\nb.png,0.5,maybe\n")
    status, _, err = command("csv", "--labels", labels, "--out", tmp_path / "a", *words)
    assert status == 2
    assert len(err.splitlines()) == 1
    assert message in err


@pytest.mark.parametrize("names", [("x5.png", "x6.png"), ("x5.PNG", "x6.PNG")])
def test_no_picture_is_in_two_splits(tmp_path, command, names):
    """Neither by the same name nor by a name whose ending differs in case."""
    rows = [f"x{i}.png,0.5,{'test' if i in (5, 6) else 'train' if i < 30 else 'val'}" for i in range(40)]
    rows += [f"{names[0]},0.5,train", f"{names[1]},0.5,val"]
    labels = write(tmp_path / "t.csv", "image,score,split\n" + "\n".join(rows))
    make_pictures(tmp_path / "images", [f"x{i}.png" for i in range(40)], (8, 8))
    words = f"csv --labels {labels} --images {tmp_path}/images --split_column split --num_workers 0".split()
    status, out, err = command(*words, "--out", tmp_path / "a")
    assert status == 0, err
    counts = [len(pd.read_csv(tmp_path / "a" / f"{split}.csv")) for split in ("train", "val", "test")]
    assert counts == [28, 10, 2]
    assert "1 dropped: train rows of images that are in another split" in out
    assert "1 dropped: val rows of images that are in another split" in out


def test_a_prepared_csv_that_is_read_again_is_not_written_over(tmp_path, command):
    labels = write(
        tmp_path / "mine.csv", "image,score\n" + "".join(f"{i}.jpg,0.{i}\n" for i in range(10, 30))
    )
    assert command("csv", "--labels", labels, "--out", tmp_path / "a")[0] == 0
    before = (tmp_path / "a" / "train.csv").read_bytes()
    status, _, err = command(
        "csv", "--labels", tmp_path / "a" / "train.csv", "--out", tmp_path / "a", "--overwrite"
    )
    assert status == 2
    assert "train.csv: is one of the labels to be read; give another --out" in err
    assert (tmp_path / "a" / "train.csv").read_bytes() == before
