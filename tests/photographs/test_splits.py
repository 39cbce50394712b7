"""Which split a test.csv is: AVA's as the authors published it, the official one, or one that a summary names."""

import json

import numpy as np
import pandas as pd
import pytest

from iaa.photographs import splits
from iaa.photographs.splits import TAD66K_TEST, authors_ids, digest, recognise_split


def ava_txt(path, ids):
    rng = np.random.default_rng(0)
    votes = rng.integers(1, 60, (len(ids), 10))
    rows = [
        f"{i} {number} {' '.join(map(str, row))} 0 1 7"
        for i, (number, row) in enumerate(zip(ids, votes, strict=True), 1)
    ]
    path.write_text("\n".join(rows))
    return path


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An AVA.txt with all ids of the authors' lists, shuffled, and 500 others."""
    listed = [*authors_ids("val"), *authors_ids("test")]
    others = list(range(1_000_000, 1_000_500))
    ids = np.random.default_rng(1).permutation(listed + others)
    return ava_txt(tmp_path_factory.mktemp("ava") / "AVA.txt", ids)


def ids_of(folder):
    return {s: tuple(pd.read_csv(folder / f"{s}.csv")["image_id"]) for s in ("train", "val", "test")}


def test_the_authors_lists_are_those_that_they_published():
    val, test = authors_ids("val"), authors_ids("test")
    assert (len(set(val)), len(set(test))) == (12_775, 12_776)
    assert not set(val) & set(test)
    assert test[:3] == (687050, 167329, 172297)


@pytest.mark.slow
def test_avas_default_split_is_the_authors_in_their_order(whole, tmp_path, command):
    status, out, err = command("ava", "--labels", whole, "--out", tmp_path / "a")
    assert (status, err) == (0, "")
    ids = ids_of(tmp_path / "a")
    assert ids["val"] == authors_ids("val")
    assert ids["test"] == authors_ids("test")
    assert set(ids["train"]) == set(range(1_000_000, 1_000_500))
    assert json.loads((tmp_path / "a" / "summary.json").read_text())["split"] == "authors"
    assert "split: the authors'" in out


@pytest.mark.slow
def test_rows_that_ava_txt_lacks_are_refused_or_counted(tmp_path, command):
    labels = ava_txt(
        tmp_path / "AVA.txt", [*authors_ids("test")[5:], *authors_ids("val"), *range(1_000_000, 1_000_300)]
    )
    words = ("ava", "--labels", labels, "--out", tmp_path / "a")
    status, out, err = command(*words)
    assert (status, out, len(err.splitlines())) == (2, "", 1)
    assert f"5 of the 25551 ids of the authors' lists are not in {labels}, first 687050" in err
    assert not (tmp_path / "a").exists()
    status, out, _ = command(*words, "--skip_missing")
    assert status == 0
    assert "5 of the 25551 ids of the authors' lists are not in" in out
    assert ids_of(tmp_path / "a")["test"] == authors_ids("test")[5:]


def test_the_official_lists_say_what_is_tested_and_trained(tmp_path, command):
    labels = ava_txt(tmp_path / "AVA.txt", range(100, 200))
    tests = tmp_path / "generic_test.jpgl"
    tests.write_bytes(b"\xef\xbb\xbf110\r\n 105.jpg\r\n101\r\n")
    words = ("ava", "--labels", labels, "--split", "official")
    assert command(*words, "--out", tmp_path / "a", "--test_list", tests)[0] == 0
    ids = ids_of(tmp_path / "a")
    assert ids["test"] == (110, 105, 101)
    assert [len(ids[split]) for split in ("train", "val")] == [92, 5]
    train = tmp_path / "generic_ss_train.jpgl"
    train.write_text("\n".join(map(str, range(120, 160))))
    status, out, _ = command(*words, "--out", tmp_path / "b", "--test_list", tests, train)
    assert status == 0
    ids = ids_of(tmp_path / "b")
    assert set(ids["train"]) | set(ids["val"]) == set(range(120, 160))
    assert "57 dropped: in none of the lists" in out


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("101\n105\n101\n", "list.txt: id 101 is in the lists a second time"),
        ("101\n7\n8\n", "2 of the 3 ids of {list} are not in {labels}, first 7"),
        ("7\n", "1 of the 1 ids of {list} are not in"),
        ("101\nx\n", "list.txt, line 2: id = 'x': not an image id"),
        ("\n", "list.txt: empty; it needs rows"),
    ],
)
def test_a_wrong_test_list_is_one_line(tmp_path, command, text, problem):
    labels, ids = ava_txt(tmp_path / "AVA.txt", range(100, 200)), tmp_path / "list.txt"
    ids.write_text(text)
    status, out, err = command("ava", "--labels", labels, "--out", tmp_path / "a", "--test_list", ids)
    assert (status, out, len(err.splitlines())) == (2, "", 1)
    assert problem.format(list=ids, labels=labels) in err
    assert not (tmp_path / "a").exists()


def test_the_official_split_needs_its_list(tmp_path, command):
    labels = ava_txt(tmp_path / "AVA.txt", range(100, 200))
    for words in (("--split", "official"), ("--split", "random", "--test_list", labels)):
        status, _, err = command("ava", "--labels", labels, "--out", tmp_path / "a", *words)
        assert status == 2
        assert "--split official and --test_list belong together" in err


def test_the_test_csv_itself_says_whether_it_is_the_authors(tmp_path):
    names = [f"{number}.jpg" for number in authors_ids("test")]
    assert recognise_split("ava", tmp_path, names)[::2] == ("authors", "")
    names[0] = names[0].replace(".jpg", ".JPG")  # as it may be on a disk
    assert recognise_split("ava", tmp_path, names)[::2] == ("authors", "")
    assert (
        "12770 of the 12776 photographs of the authors'"
        in recognise_split("ava", tmp_path, names[6:]).departure
    )
    for some in (names[::-1], names[:50][::-1]):
        assert "in another order" in recognise_split("ava", tmp_path, some).departure
    other = recognise_split("ava", tmp_path, ["1.jpg", *names[1:]])
    assert other.name == "unknown"
    assert "other photographs than those of the authors' test.csv" in other.departure


def test_avas_official_test_set_is_recognised_by_its_counts(tmp_path):
    """19,930 photographs, of which 975 and 984 are in the authors' lists. The official list itself is not ours to keep."""
    listed = [*authors_ids("test")[:975], *authors_ids("val")[:984]]
    names = [f"{number}.jpg" for number in [*listed, *range(2_000_000, 2_000_000 + 19_930 - len(listed))]]
    split = recognise_split("ava", tmp_path, names)
    assert (split.name, "of the authors' test.csv" in split.departure) == ("official", True)
    assert recognise_split("ava", tmp_path, ["7.jpg", *names[1:]]).name == "unknown"
    assert recognise_split("ava", tmp_path, names[:-1]).name == "unknown"


def test_biq2021s_official_test_set_is_recognised_by_its_names_in_any_order(tmp_path, monkeypatch):
    names = ["b.jpg", "a.jpg"]
    monkeypatch.setattr(splits, "BIQ2021_TEST", (2, digest(["a.jpg", "b.jpg"])))
    assert recognise_split("csv", tmp_path, names) == (
        "BIQ2021 official",
        "the 2 photographs of BIQ2021's official test set",
        "",
    )
    assert recognise_split("csv", tmp_path, ["a.jpg", "c.jpg"]).name == "unknown"


def test_a_summary_is_believed_of_its_own_test_csv_only(tmp_path):
    about = {"split": "workers", "test_digest": digest(["a.jpg", "b.jpg"])}
    (tmp_path / "summary.json").write_text(json.dumps(about))
    assert recognise_split("flickr_aes", tmp_path, ["a.jpg", "b.jpg"])[::2] == ("workers", "")
    assert recognise_split("flickr_aes", tmp_path, ["b.jpg", "a.jpg"]).name == "unknown"
    (tmp_path / "summary.json").write_text("[]")
    assert recognise_split("flickr_aes", tmp_path, ["a.jpg", "b.jpg"]).name == "unknown"
    assert recognise_split("tad66k", tmp_path, ["a.jpg"]).departure.startswith(
        "other photographs than those of the off"
    )
    assert TAD66K_TEST[0] == 14_079
