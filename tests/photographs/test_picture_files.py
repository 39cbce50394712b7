"""Names as people and systems write them: which file on the disk they mean."""

import unicodedata

import pytest
from helpers.data import make_pictures

from iaa.errors import InputError
from iaa.photographs.labels import FORMATS, find_images, read_labels
from iaa.photographs.picture_files import file_finder

NFC, NFD = (unicodedata.normalize(form, "März/café.jpg") for form in ("NFC", "NFD"))


@pytest.mark.parametrize(
    ("on_disk", "name"),
    [(NFC, NFD), (NFD, NFC), ("a/b.jpg", "a\\b.jpg"), (NFD, NFC.replace("/", "\\")), ("a/b.JPG", "a/b.jpg")],
)
def test_a_file_is_found_however_its_name_is_spelt(tmp_path, on_disk, name, caplog):
    make_pictures(tmp_path, [on_disk])
    find = file_finder(tmp_path)
    with caplog.at_level("INFO", "eat"):
        assert [find(name), find(name), find("other.jpg"), find("none/b.jpg")] == [
            on_disk,
            on_disk,
            None,
            None,
        ]
    assert caplog.text.count("names are found though they are spelt otherwise") == (
        not name.endswith("a/b.jpg")
    )


def test_the_spelling_itself_comes_first(tmp_path):
    names = [NFC, NFD, "a\\b.jpg", "a/b.jpg", "x.jpg", "x.JPG"]
    make_pictures(tmp_path, names)
    assert [file_finder(tmp_path)(name) for name in names] == names
    assert file_finder(tmp_path / "nowhere")("a.jpg") is None


def test_two_rows_of_one_file_are_refused(tmp_path):
    make_pictures(tmp_path, ["0000.jpg"])
    (tmp_path / "test.csv").write_text("image,score\n0000.jpg,5\n0000.JPG,7\n")
    labels = read_labels(tmp_path / "test.csv", FORMATS["tad66k"])
    with pytest.raises(InputError, match=r"test.csv: 0000.jpg, 0000.JPG: one file in .*; keep one row"):
        find_images(labels, tmp_path, skip_missing=False)
