"""`--test_list`: the photographs of a list are the test set of any dataset; the others train and validate."""

import json

import numpy as np
import pandas as pd
import pytest
from helpers.official_files import AVA_LINES, write

from iaa.photographs import official, splits
from iaa.photographs.splits import authors_ids

PICTURES = [f"p{i}.jpg" for i in range(20)]


@pytest.fixture
def table(tmp_path):
    """A table of twenty scores, p0.jpg to p19.jpg."""
    return write(tmp_path / "t.csv", "image,score\n" + "".join(f"{name},0.5\n" for name in PICTURES))


def images_of(folder):
    return {
        split: pd.read_csv(folder / f"{split}.csv")["image"].tolist() for split in ("train", "val", "test")
    }


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("list.txt", "p7.jpg\n p3.jpg \r\n\n./p11.jpg\n"),
        ("list.txt", "p7\np3.JPG\nsome/folder/p11"),
        ("list.txt", "photos\\p7.jpg\np3\np11"),
        ("list.csv", "Score;Image Name\n1;p7.jpg\n2;p3.jpg\n3;p11.jpg\n"),
        ("list.csv", "id,img_path\n7,a/p7.jpg\n3,a/p3.jpg\n4,a/p11.jpg\n"),
        (
            "list.json",
            json.dumps([{"id": i, "image": f"a/{n}.jpg"} for i, n in enumerate(["p7", "p3", "p11"])]),
        ),
    ],
)
def test_a_lists_photographs_are_the_test_set_in_its_order(tmp_path, command, table, name, text):
    """Names of a text file, a CSV or a JSON of records; with or without ending, or behind another folder."""
    words = ("csv", "--labels", table, "--out", tmp_path / "a", "--test_list", write(tmp_path / name, text))
    status, out, err = command(*words)
    assert (status, err) == (0, "")
    images = images_of(tmp_path / "a")
    assert images["test"] == ["p7.jpg", "p3.jpg", "p11.jpg"]
    assert [len(images["train"]), len(images["val"])] == [15, 2]
    assert {*images["train"], *images["val"]} == {*PICTURES} - {*images["test"]}
    assert "split: by --test_list" in out


def test_a_list_overrules_the_official_test_set(tmp_path, command):
    rows = "".join(f"a{i}.jpg,{i % 10}\n" for i in range(20))
    write(tmp_path / "merge" / "train.csv", "image,score\n" + rows)
    write(tmp_path / "merge" / "test.csv", "image,score\nt0.jpg,9.9\nt1.jpg,0.1\n")
    names = write(tmp_path / "list.txt", "a5.jpg\nt1.jpg\n")
    words = ("tad66k", "--labels", tmp_path, "--out", tmp_path / "a", "--test_list", names)
    assert command(*words)[0] == 0
    images = images_of(tmp_path / "a")
    assert images["test"] == ["a5.jpg", "t1.jpg"]
    assert "t0.jpg" in images["train"] + images["val"]
    assert [len(images["train"]), len(images["val"])] == [18, 2]


def test_a_second_list_may_limit_the_training_set(tmp_path, command, table):
    lists = write(tmp_path / "test.txt", "p1\n"), write(tmp_path / "train.txt", "\n".join(PICTURES[5:15]))
    status, out, _ = command("csv", "--labels", table, "--out", tmp_path / "a", "--test_list", *lists)
    assert (status, "9 dropped: in none of the lists" in out) == (0, True)
    images = images_of(tmp_path / "a")
    assert {*images["train"], *images["val"]} == {*PICTURES[5:15]}


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("l.txt", "p1.jpg\nx.jpg\ny\n", "2 of the 3 images of {list} are not in {labels}, first x.jpg; is it whole?"),
        ("l.txt", "p1.png\n", "1 of the 1 images of"),
        ("l.txt", "p1\np2\np1.jpg\n", "l.txt: image p1.jpg is in the lists a second time"),
        ("train.txt", "p1\n", "no images of test photographs of {labels}; a list with `train` in its name"),
        ("l.csv", "p1.jpg\np2.jpg\n", "l.csv: no column of names (image, image_id, "),
        ("l.json", '{"image": ["p1"]}', "l.json: not a JSON list of records"),
        ("l.json", "[1]", "l.json: not a JSON list of records"),
        ("l.json", "[{", "l.json: not readable JSON"),
        ("l.json", '[{"image": 1}, {"img": "p2"}]',  "l.json, line 2: image = '': the image's name is empty"),
    ],
)  # fmt: skip
def test_a_wrong_list_is_one_line(tmp_path, command, table, name, text, problem):
    names = write(tmp_path / name, text)
    status, out, err = command("csv", "--labels", table, "--out", tmp_path / "a", "--test_list", names)
    assert (status, out, len(err.splitlines())) == (2, "", 1)
    assert problem.format(list=names, labels=table) in err
    assert not (tmp_path / "a").exists()


def test_missing_names_are_left_out_on_request_but_not_all_of_them(tmp_path, command, table):
    names = write(tmp_path / "l.txt", "p1\nx\n")
    words = ("csv", "--labels", table, "--out", tmp_path / "a", "--skip_missing", "--test_list")
    status, out, _ = command(*words, names)
    assert (status, "1 of the 2 images of" in out) == (0, True)
    assert images_of(tmp_path / "a")["test"] == ["p1.jpg"]
    status, _, err = command(*words, write(tmp_path / "l.txt", "x\n"), "--overwrite")
    assert (status, "no images of test photographs" in err) == (2, True)
    assert images_of(tmp_path / "a")["test"] == ["p1.jpg"]


def test_a_name_without_ending_that_two_photographs_have_is_refused(tmp_path, command):
    rows = "".join(f"{name},0.5\n" for name in [*PICTURES, "p1.png"])
    words = ("--labels", write(tmp_path / "t.csv", "image,score\n" + rows), "--out", tmp_path / "a")
    status, _, err = command("csv", *words, "--test_list", write(tmp_path / "l.txt", "p1\n"))
    assert (status, "first p1" in err) == (2, True)
    assert command("csv", *words, "--test_list", write(tmp_path / "l.txt", "p1.png\n"))[0] == 0
    assert images_of(tmp_path / "a")["test"] == ["p1.png"]


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["csv", "--labels", "t.csv", "--test_labels", "u.csv"], "--test_list is for one table"),
        (["csv", "--labels", "t.csv", "--split_column", "split"], "--test_list is for one table"),
        (["flickr_aes", "--scores", "s.txt", "--workers", "w.csv"], "--workers and --test_list exclude each other"),
    ],
)  # fmt: skip
def test_two_answers_to_the_same_question_are_refused(command, words, problem):
    status, _, err = command(*words, "--out", "a", "--test_list", "l.txt")
    assert (status, len(err.splitlines()), problem in err) == (2, 1, True)


def test_a_list_is_not_written_over(tmp_path, command, table):
    words = ("csv", "--labels", table, "--out", tmp_path / "a")
    assert command(*words)[0] == 0
    before = (tmp_path / "a" / "test.csv").read_bytes()
    status, _, err = command(*words, "--test_list", tmp_path / "a" / "test.csv", "--overwrite")
    assert (status, "test.csv: is one of the labels to be read" in err) == (2, True)
    assert (tmp_path / "a" / "test.csv").read_bytes() == before


def test_the_list_of_ava_says_whether_it_is_the_official_one(tmp_path, monkeypatch):
    """By the numbers of its ids and of those in the authors' lists; here one in each, of three."""
    monkeypatch.setattr(splits, "AVA_OFFICIAL", (3, 1, 1))
    ids = [authors_ids("test")[0], authors_ids("val")[0], 5, 6, 7]
    votes = AVA_LINES[0].split(maxsplit=2)[2]
    labels = write(tmp_path / "AVA.txt", "\n".join(f"{i} {number} {votes}" for i, number in enumerate(ids)))
    for chosen, split in ((ids[:3], "official"), (ids[:2], "list"), (ids[1:4], "list")):
        prepared = official.read_ava(labels)
        names = write(tmp_path / "l.jpgl", "\n".join(map(str, np.flip(chosen))))
        official.split_by_lists(prepared, [str(names)], labels, False)
        assert prepared.split == split
        tested = prepared.table[prepared.table["split"] == "test"]["image_id"]
        assert tested.tolist() == chosen[::-1]
