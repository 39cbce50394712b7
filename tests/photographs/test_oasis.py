"""OASIS, in files made after its description: ratings of beauty by Theme, and who gave which rating."""

import json
import shlex

import numpy as np
import pandas as pd
import pytest
from helpers.data import arguments, make_pictures
from helpers.official_files import write
from scipy.io import savemat

THEMES = [f"Acorns{i}" for i in range(1, 11)] + [f"Dog {i}" for i in range(1, 11)] + ["Lake12", "War1"]
CATEGORIES = ["Object"] * 10 + ["Animal"] * 10 + ["Scene", "Person"]
FILES = [f"Acorns {i}.jpg" for i in range(1, 11)] + [f"Dog {i}.jpg" for i in range(1, 11)] + ["Lake 12.jpg", "War 1.jpg"]  # fmt: skip


def ratings_of(people=6, seed=0):
    """People x items, 1 to 7, a third of them not given; the first person has rated everything."""
    rng = np.random.default_rng(seed)
    ratings = rng.integers(1, 8, (people, len(THEMES))).astype(float)
    ratings[1:][rng.random((people - 1, len(THEMES))) < 1 / 3] = np.nan
    return ratings


@pytest.fixture
def oasis(tmp_path):
    """A folder with means_per_image.csv, whose rows are not in the order of `item`, and corrData.mat."""
    ratings = ratings_of()
    table = pd.DataFrame(
        {
            "item": range(1, len(THEMES) + 1),
            "beauty_mean": np.nanmean(ratings, 0),
            "Theme": THEMES,
            "Category": CATEGORIES,
            "Valence_mean": 4.5,
            "N": (~np.isnan(ratings)).sum(0),
        }
    )
    table.sample(frac=1, random_state=1).to_csv(
        tmp_path / "means_per_image.csv", index=False, encoding="utf-8-sig"
    )
    savemat(tmp_path / "corrData.mat", {"corrData": ratings, "other": "words"})
    return tmp_path


def words(folder, out="a", votes=False):
    options = ["--labels", folder / "means_per_image.csv", "--out", folder / out]
    return ["oasis", *options, *(["--votes", folder / "corrData.mat"] if votes else [])]


def read(folder):
    tables = {split: pd.read_csv(folder / f"{split}.csv") for split in ("train", "val", "test")}
    return tables, pd.concat(tables.values()).set_index("image")


def test_a_theme_names_its_picture_and_its_mean_is_a_score_of_1_to_7(oasis, command):
    status, out, err = command(*words(oasis))
    assert (status, err) == (0, "")
    tables, table = read(oasis / "a")
    assert [len(part) for part in tables.values()] == [17, 2, 3]
    assert sorted(table.index) == sorted(FILES)
    assert table.loc[FILES, "score"].tolist() == pytest.approx(np.nanmean(ratings_of(), 0).tolist())
    summary = json.loads((oasis / "a" / "summary.json").read_text())
    assert (summary["dataset"], summary["score_range"]) == ("csv", [1, 7])
    assert "--dataset csv" in out
    assert out.endswith("--score_min 1 --score_max 7\n")


def test_votes_are_counted_by_level_in_the_order_of_item(oasis, command):
    status, out, err = command(*words(oasis, votes=True))
    assert (status, err) == (0, "")
    _, table = read(oasis / "a")
    assert list(table.columns) == [f"vote{level}" for level in range(1, 8)]
    ratings = ratings_of()
    for level in range(1, 8):
        assert table.loc[FILES, f"vote{level}"].tolist() == (ratings == level).sum(0).tolist()
    assert "beauty_mean and the means of the votes differ by at most 0.000" in out
    assert "--score_min" not in out


def test_columns_in_another_order_than_item_show_in_the_summary(oasis, command):
    savemat(oasis / "corrData.mat", {"corrData": ratings_of()[:, ::-1]})
    status, out, _ = command(*words(oasis, votes=True))
    (line,) = [line for line in out.splitlines() if "differ by at most" in line]
    assert (status, float(line.split()[-1]) > 1) == (0, True)


def test_categories_leave_people_out(oasis, command):
    status, out, _ = command(*words(oasis), "--categories", "Scene", "Animal")
    assert (status, "11 dropped: of other categories" in out) == (0, True)
    assert sorted(read(oasis / "a")[1].index) == sorted(FILES[10:21])


def test_a_theme_without_a_picture_is_counted_and_the_next_command_trains(oasis, command, run):
    make_pictures(oasis / "images", FILES[:-1])
    status, out, _ = command(*words(oasis, votes=True), "--images", oasis / "images", "--num_workers", 0)
    assert (status, "1 dropped: picture missing" in out) == (0, True)
    assert "the first picture that is missing: War 1.jpg" in out
    printed = shlex.split(out.splitlines()[-1].partition("main_nni.py ")[2])
    quick = arguments(oasis, limit=2, path_to_images=None, path_to_save_csv=None, dataset=None)
    status, result, err = run(printed + quick)
    assert (status, result and result["dataset"]) == (0, "csv"), err


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ({"ratings": ratings_of()}, "corrData.mat: has no corrData; give the file"),
        ({"corrData": ratings_of()[:, :-1]}, "corrData.mat: corrData has 21 columns, {csv} 22 items"),
        ({"corrData": ratings_of().T}, "corrData has 6 columns"),
        ({"corrData": np.where(ratings_of() == 7, 8, ratings_of())}, "= 8: ratings are 1, 2, ... 7 ("),
        ({"corrData": np.where(ratings_of() == 3, 3.5, ratings_of())}, "= 3.5: ratings are 1, 2, ... 7 ("),
        ({"corrData": ratings_of() * np.nan}, "all votes are 0"),
        ({"corrData": "words"}, "corrData.mat: not a readable MATLAB file"),
        (b"MATLAB 5.0 MAT-file, and no more", "corrData.mat: not a readable MATLAB file"),
        (b"", "corrData.mat: not a readable MATLAB file"),
        (None, "corrData.mat: not a readable MATLAB file ([Errno 2] No such file"),
    ],
)
def test_a_wrong_mat_file_is_one_line(oasis, command, content, problem):
    path = oasis / "corrData.mat"
    path.unlink()
    if isinstance(content, dict):
        savemat(path, content)
    elif content is not None:
        path.write_bytes(content)
    status, out, err = command(*words(oasis, votes=True))
    assert (status, out, len(err.splitlines())) == (2, "", 1)
    assert problem.format(csv=oasis / "means_per_image.csv") in err
    assert not (oasis / "a").exists()


def test_the_first_wrong_rating_is_named(oasis, command):
    ratings = ratings_of()
    ratings[0, [3, 9]] = 0
    savemat(oasis / "corrData.mat", {"corrData": ratings})
    _, _, err = command(*words(oasis, votes=True))
    assert "corrData, row 1, column 4 = 0: ratings are 1, 2, ... 7 (2 such values)" in err


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("item,Theme,Category\n1,A1,Scene\n", "no column beauty_mean; found item, Theme, Category"),
        ("item,beauty_mean,Theme,Category\n1,7.5,A1,Scene\n", "line 2: beauty_mean = '7.5': scores are 1 to 7"),
        ("item,beauty_mean,Theme,Category\n1,5,,Scene\n", "line 2: image = '': the image's name is empty"),
        ("item,beauty_mean,Theme,Category\n1,5,A1,Scene\n2,6,A1,Scene\n", "line 3: image = 'A 1.jpg': stands there with another"),
    ],
)  # fmt: skip
def test_a_wrong_table_is_one_line(oasis, command, text, problem):
    write(oasis / "means_per_image.csv", text)
    status, out, err = command(*words(oasis))
    assert (status, out, len(err.splitlines())) == (2, "", 1)
    assert problem in err


def test_items_need_numbers_of_their_own_and_categories_must_be_there(oasis, command):
    path = oasis / "means_per_image.csv"
    rows = path.read_text("utf-8-sig").splitlines()
    path.write_text(
        "\n".join([*rows[:2], rows[2].replace(rows[2].split(",")[0], rows[1].split(",")[0], 1), *rows[3:]])
    )
    _, _, err = command(*words(oasis, votes=True))
    assert "line 3: item = '" in err
    assert "not a number of its own" in err
    status, _, err = command(*words(oasis), "--categories", "Scene", "People")
    assert (status, "no Category People; found Animal, Object, Person, Scene" in err) == (2, True)
