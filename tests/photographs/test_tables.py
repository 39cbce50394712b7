"""Tables as people save them: the same labels, whatever separates, packs or encodes them."""

import gzip
import json

import numpy as np
import pandas as pd
import pytest
from helpers.data import arguments, make_pictures
from helpers.runs import refused

from iaa.errors import InputError
from iaa.photographs.labels import csv_format, read_labels
from iaa.photographs.tables import read_table

TEXT = "image,score\nä.jpg,0.25\nb.jpg,1\n"
SEMICOLONS = TEXT.replace(",", ";").replace(".25", ",25")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (TEXT.encode(), None),
        (TEXT.encode("utf-16"), None),
        (TEXT.encode("utf-16-be").join([b"\xfe\xff", b""]), None),
        (gzip.compress(TEXT.encode("utf-8-sig")), None),
        (TEXT.replace("\n", ",,\n").encode(), None),  # Excel's empty columns
        (TEXT.replace("\n", "\r").encode(), None),
        (SEMICOLONS.encode(), "separated by semicolons, so numbers may have decimal commas"),
        (SEMICOLONS.replace("\n", ";;\r\n").encode("utf-16"), "separated by semicolons"),
        (TEXT.replace(",", "\t").encode(), "separated by tabs"),
        (TEXT.replace(",", "|").encode(), "separated by bars"),
        (f"sep=;\r\n{SEMICOLONS}".encode("utf-8-sig"), "separated by semicolons"),
        (f'"sep=|"\n{TEXT}'.replace(",", "|").encode(), "separated by bars"),
        (TEXT.encode("utf-16-le"), "read as UTF-16, though it has no mark of it"),
        (TEXT.encode("utf-16-be"), "read as UTF-16, though it has no mark of it"),
        (TEXT.replace("0.25", '"0,25"').encode(), "commas in its numbers are decimal commas"),
    ],
    ids=range(15),
)
def test_the_labels_are_the_same_however_a_table_is_saved(tmp_path, content, told, caplog):
    path = tmp_path / "t.csv"
    path.write_bytes(content)
    with caplog.at_level("INFO", "eat"):
        for _ in range(2):
            labels = read_labels(path, csv_format(path, (0, 1), None))
    assert labels.images.tolist() == ["ä.jpg", "b.jpg"]
    assert labels.mos.tolist() == [0.25, 1]
    assert [told in line for line in caplog.messages] == [True] if told else not caplog.messages


@pytest.mark.parametrize("value", ["1,234", "1,234,567", "0,2,5", "0,25x"])
def test_commas_that_may_separate_thousands_or_nothing_are_refused(tmp_path, value):
    (tmp_path / "t.csv").write_text(f'image,score\na.jpg,"{value}"\n')
    with pytest.raises(InputError, match=f"line 2: score = '{value}': not a number") as error:
        read_labels(tmp_path / "t.csv", csv_format(tmp_path / "t.csv", (0, 10), None))
    assert ("write decimals with a point" in str(error.value)) == value.startswith("1")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (gzip.compress(TEXT.encode())[:-12], "does not unpack"),
        (gzip.compress(bytes(3 * 2**20)), "does not unpack .it takes more than 1 MiB"),
        (b"image\0score\0", "not UTF-8 text; save it as such"),
        (None, "is a folder, not a file of labels; name the file in it"),
    ],
    ids=["cut", "bomb", "NULs", "folder"],
)
def test_what_is_no_table_is_told(tmp_path, monkeypatch, content, problem):
    monkeypatch.setattr("iaa.photographs.tables.MAX_BYTES", 2**20)
    (tmp_path / "t.csv").mkdir() if content is None else (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(InputError, match=problem):
        read_table(tmp_path / "t.csv")
    with pytest.raises(InputError, match="/dev/null: is a device or a pipe; save the labels in a file"):
        read_table("/dev/null")


def test_columns_of_other_names_name_the_command_that_prepares_them(tmp_path, run):
    for name in ("train.csv", "test.csv"):
        (tmp_path / name).write_text("filename,MOS\na.jpg,3\n")
    (tmp_path / "images").mkdir()
    refused(
        run,
        tmp_path,
        "prepare_data.py csv --labels TABLE",
        "--image_column filename --score_column MOS",
        dataset="csv",
    )
    (tmp_path / "test.csv").write_text("photo,score1,score2\na.jpg,3,1\n")
    with pytest.raises(InputError, match=r"no column image; .* --image_column photo$"):
        csv_format(tmp_path / "test.csv", (0, 1), None)


def test_scores_on_another_scale_name_the_options(tmp_path):
    (tmp_path / "t.csv").write_text("image,score\na.jpg,3\nb.jpg,4.5\n")
    with pytest.raises(InputError, match=r"scores are 0 to 1, these 3 to 4.5; --score_min and --score_max"):
        read_labels(tmp_path / "t.csv", csv_format(tmp_path / "t.csv", (0, 1), None))


def prepare(tmp_path, command):
    make_pictures(tmp_path / "my images", [f"{i}.jpg" for i in range(20)])
    rows = [f"{i}.jpg;{1 + i / 5:.1f}\n".replace(".", ",").replace(",jpg", ".jpg") for i in range(20)]
    (tmp_path / "t.csv").write_text("image;score\n" + "".join(rows))
    words = ("--labels", tmp_path / "t.csv", "--images", tmp_path / "my images", "--out", tmp_path / "p")
    return command("csv", *words, "--score_min", 1, "--score_max", 5, "--num_workers", 0)


def test_preparation_ends_with_the_next_command_and_keeps_the_scale(tmp_path, command, run):
    status, out, err = prepare(tmp_path, command)
    assert status == 0, err
    line = f"next: python main_nni.py --dataset csv --path_to_images '{tmp_path}/my images' --path_to_save_csv {tmp_path}/p"
    assert out.splitlines()[-1] == f"{line} --score_min 1 --score_max 5"
    assert json.loads((tmp_path / "p" / "summary.json").read_text())["score_range"] == [1, 5]
    scores = pd.concat(
        pd.read_csv(tmp_path / "p" / f"{split}.csv")["score"] for split in ("train", "val", "test")
    )
    np.testing.assert_allclose(sorted(scores), np.arange(20) / 5 + 1)


def test_a_run_takes_the_scale_from_beside_its_csvs(tmp_path, command, run):
    prepare(tmp_path, command)
    (tmp_path / "p" / "images").symlink_to(tmp_path / "my images")
    status, _, err = run(arguments(tmp_path / "p", "csv"))
    assert status == 0, err
    options = json.loads((tmp_path / "p" / "run" / "options.json").read_text())
    assert (options["score_min"], options["score_max"]) == (1, 5)


def test_cleaned_tables_are_separated_as_they_were(tmp_path, command):
    prepare(tmp_path, command)
    words = (
        "check",
        "--images",
        tmp_path / "my images",
        "--csv",
        tmp_path / "t.csv",
        "--out",
        tmp_path / "c",
    )
    assert command(*words, "--clean", tmp_path / "clean")[0] == 0
    assert (tmp_path / "clean" / "t.csv").read_text() == (tmp_path / "t.csv").read_text()
