"""The parsers of AVA, TAD66K and FLICKR-AES, by properties: odd writing changes nothing, and no bytes crash them."""

import string
from functools import partial

import pytest
from helpers.official_files import AVA_LINES, write
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from iaa.errors import InputError
from iaa.photographs import official

ODDLY = {
    "deadline": None,
    "max_examples": 50,
    "suppress_health_check": [HealthCheck.function_scoped_fixture],
}


blanks = st.text(" \t", min_size=1, max_size=3)
line_ends = st.sampled_from(["\n", "\r\n", "\r", "\n\n", "\r\n  \r\n"])


NAMES = st.text(string.ascii_letters + string.digits + "@_-.é", min_size=1, max_size=12).map(
    lambda s: f"a{s}.jpg"
)
SCORED = st.dictionaries(NAMES, st.integers(0, 1000).map(lambda n: n / 1000), min_size=1, max_size=5)


@settings(**ODDLY)
@given(SCORED, st.data())
def test_flickr_aes_written_oddly_is_the_same(tmp_path, scores, data):
    text = data.draw(st.sampled_from(["", "\ufeff"]))
    for name, score in scores.items():
        shown = data.draw(st.sampled_from([str(score), f"{score:.4f}", f"{score:.3e}"]))
        text += data.draw(st.text(" \t", max_size=2)) + name + data.draw(blanks) + shown
        text += data.draw(st.text(" \t", max_size=2)) + data.draw(line_ends)
    table = official.read_flickr_aes(write(tmp_path / "scores.txt", text)).table
    assert dict(zip(table["image"], table["score"], strict=True)) == scores


@settings(**ODDLY)
@given(SCORED, st.data())
def test_tad66k_written_oddly_is_the_same(tmp_path, scores, data):
    pad = st.sampled_from(["", " ", "  "])
    text = data.draw(st.sampled_from(["", "\ufeff"])) + f"image{data.draw(pad)},{data.draw(pad)}score\n"
    for name, score in scores.items():
        name = f'"{name}"' if data.draw(st.booleans()) else data.draw(pad) + name + data.draw(pad)
        text += f"{name},{data.draw(pad)}{score}" + data.draw(
            st.sampled_from(["\n", "\r\n", "\n\n", "\n  \n", "\n,\n"])
        )
    write(tmp_path / "merge" / "train.csv", text)
    write(tmp_path / "merge" / "test.csv", "image,score\nother.png,5\n")
    table = official.read_folder("tad66k", tmp_path).table.query("split == 'train'")
    assert dict(zip(table["image"], table["score"], strict=True)) == scores


ANYTHING = st.one_of(
    st.binary(max_size=300),
    st.text(max_size=300).map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.lists(st.text("0123456789 .,-\t\"'\r\nabe;\0\ufeff", max_size=60), max_size=6).map(lambda lines: "\n".join(lines).encode()),
    st.lists(st.text("0123456789.,-\" eE\n\0/", max_size=25), max_size=6).map(lambda lines: ("image,score\n" + "\n".join(lines)).encode()),
    st.lists(st.text("0123456789.,- \"", max_size=25), max_size=6).map(lambda lines: (" worker, imagePair, score\n" + "\n".join(lines)).encode()),
)  # fmt: skip


def split_by_a_list(folder, content, ending):
    prepared = official.read_ava(write(folder / "AVA.txt", "\n".join(AVA_LINES)))
    lists = [str(write(folder / f"list.{ending}", content))]
    official.split_by_lists(prepared, lists, folder / "AVA.txt", False)
    return prepared


@pytest.mark.slow
@settings(**ODDLY | {"max_examples": 75})
@given(ANYTHING)
def test_no_bytes_at_all_crash_a_parser(tmp_path, content):
    """Whatever a file holds: rows, or an InputError of one line."""
    path = write(tmp_path / "labels.txt", content)
    for place in ("merge/train.csv", "merge/test.csv"):
        write(tmp_path / place, content)
    good = write(tmp_path / "good.txt", "a.jpg 0.5\nb.jpg 0.25\n")
    for read in (
        lambda: official.read_ava(path),
        *(partial(split_by_a_list, tmp_path, content, ending) for ending in ("txt", "csv", "json")),
        lambda: official.read_folder("tad66k", tmp_path),
        lambda: official.read_flickr_aes(path),
        lambda: official.read_flickr_aes(good, path),
    ):
        found = outcome(read)
        if isinstance(found, InputError):
            assert len(str(found).splitlines()) == 1
            assert tmp_path.name in str(found)
        else:
            assert found.rows_read > 0


def outcome(read):
    try:
        return read()
    except InputError as error:
        return error
