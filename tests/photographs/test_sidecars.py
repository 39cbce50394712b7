"""Sidecars: merging changes the rating and our own properties alone, and a person's rating stays."""

import os
import re
import subprocess
from pathlib import Path

import pytest
from helpers.data import make_pictures
from helpers.xmp_files import FORMS, RATINGS, RDF, XMP, put_into_jpeg, read_by_exiftool, read_by_exiv2

from iaa.photographs.sidecars import (
    NEW,
    RATING,
    SCORE,
    STARS,
    Packet,
    read_person_rating,
    sidecar_paths,
    write_stars,
)

OURS = {RATING: "4", STARS: "4", SCORE: "6.1000"}
# The namespaces that the first rdf:Description lacks, and the properties.
INSERTED = re.compile(
    rb'(?<=<rdf:Description)(?: xmlns:xmp="[^"]*")?(?: xmlns:eat="[^"]*")'
    rb' xmp:Rating="4" eat:stars="4" eat:score="6.1000"'
)
form = pytest.mark.parametrize("form", FORMS)


@pytest.fixture
def photo(tmp_path):
    make_pictures(tmp_path, ["a.jpg"])
    return str(tmp_path / "a.jpg")


def sidecar(photo, content, name=0):
    path = sidecar_paths(photo)[name]
    Path(path).write_bytes(content)
    return path


def values(path):
    return Packet(Path(path).read_bytes()).values


def description(attributes="", elements=""):
    """XMP with these texts in its rdf:Description."""
    declared = f'xmlns:xmp="{XMP}" xmlns:eat="http://ns.eat-iaa/1.0/"'
    return f"<rdf:RDF {RDF}><rdf:Description {declared} {attributes}>{elements}</rdf:Description></rdf:RDF>".encode()


@form
def test_everything_but_the_rating_stays_byte_by_byte(form):
    before = FORMS[form].encode()
    merged = Packet(before).merged(OURS)
    rest, count = INSERTED.subn(b"", merged)
    assert count == 1
    assert rest == before.replace(RATINGS[form].encode(), b"")
    assert Packet(merged).values == OURS


@form
def test_merging_twice_changes_nothing_and_other_stars_replace_ours(form):
    merged = Packet(FORMS[form].encode()).merged(OURS)
    assert Packet(merged).merged(OURS) == merged
    again = Packet(merged).merged({RATING: "5", STARS: "5", SCORE: "7.0000"})
    assert Packet(again).values == {RATING: "5", STARS: "5", SCORE: "7.0000"}
    back = Packet(again).merged(OURS)
    assert sorted(back.split()) == sorted(merged.split())
    assert len(again) == len(merged)


def test_what_only_looks_like_a_rating_stays():
    note = """eat:note=" xmp:Rating='9' > " xmp:Label='xmp:Rating="9"'"""
    texts = "<!-- <xmp:Rating>9</xmp:Rating> --><eat:a><![CDATA[<xmp:Rating>9</xmp:Rating>]]></eat:a><?a xmp:Rating='9'?>"
    before = description(note + ' xmp:Rating="2"', texts)
    packet = Packet(before)
    assert packet.values == {RATING: "2"}
    merged = packet.merged(OURS)
    inserted = b' xmp:Rating="4" eat:stars="4" eat:score="6.1000"'
    assert merged.replace(inserted, b"", 1) == before.replace(b' xmp:Rating="2"', b"")


@form
def test_other_tools_read_the_stars(tmp_path, form):
    path = tmp_path / "a.jpg.xmp"
    path.write_bytes(Packet(FORMS[form].encode()).merged(OURS))
    assert read_by_exiftool(path).items() >= {"Rating": "4", "Score": "6.1000", "Stars": "4"}.items()
    assert read_by_exiv2(path).items() >= {"Xmp.xmp.Rating": "4", "Xmp.eat.score": "6.1000"}.items()


@pytest.mark.parametrize(
    ("attributes", "elements", "rating"),
    [
        ("", "", None),
        ('xmp:Rating="0"', "", None),  # programs write it for no stars
        ("", "<xmp:Rating/>", None),
        ('xmp:Rating="3"', "", "3"),
        ("", "<xmp:Rating> -1\n</xmp:Rating>", "-1"),
        ('xmp:Rating="3" eat:stars="3"', "", None),
        ("", "<xmp:Rating>3</xmp:Rating><eat:stars>3</eat:stars>", None),  # another program wrote it anew
        ('xmp:Rating="2" eat:stars="3"', "", "2"),
        ('xmp:Rating="0" eat:stars="3"', "", "0"),  # taken away
        ('eat:stars="3"', "", ""),
    ],
)
def test_a_rating_that_differs_from_ours_is_a_persons(photo, attributes, elements, rating):
    sidecar(photo, description(attributes, elements))
    assert read_person_rating(photo) == rating


def test_a_persons_rating_stays_unless_it_is_to_be_overwritten(photo):
    path = sidecar(photo, description('xmp:Rating="2"'))
    assert not write_stars(photo, path, 4, 6.1, overwrite=False)
    assert values(path) == {RATING: "2", SCORE: "6.1000"}
    assert write_stars(photo, path, 4, 6.1, overwrite=True)
    assert values(path) == OURS


@pytest.mark.parametrize("where", ["a.xmp", "a.jpg"])
def test_no_sidecar_hides_a_persons_rating_of_another_place(photo, where):
    if where == "a.jpg":
        put_into_jpeg(photo, description(elements="<xmp:Rating>2</xmp:Rating>"))
    else:
        sidecar(photo, description('xmp:Rating="2"'), name=1)
    path = sidecar_paths(photo)[0]
    assert read_person_rating(photo) == "2"
    assert not write_stars(photo, path, 4, 6.1, overwrite=False)
    assert not os.path.exists(path)
    assert write_stars(photo, path, 4, 6.1, overwrite=True)
    assert values(path) == OURS


def test_a_sidecar_that_says_the_same_is_not_written_again(photo):
    path = sidecar_paths(photo)[0]
    assert write_stars(photo, path, 4, 6.1, overwrite=False)
    before = os.stat(path)
    assert write_stars(photo, path, 4, 6.1, overwrite=False)
    assert (os.stat(path).st_ino, os.stat(path).st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert sorted(os.listdir(os.path.dirname(path))) == ["a.jpg", "a.jpg.xmp"]


BOMB = '<!DOCTYPE r [<!ENTITY a "aaaaaaaa"><!ENTITY b "&a;&a;&a;&a;">]>'


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is not XML in UTF-8 (no element found"),
        (b"stars: 3", "it is not XML in UTF-8 (syntax error: line 1"),
        (FORMS["darktable"][:-20].encode(), "it is not XML in UTF-8"),
        (FORMS["darktable"].replace("UTF-8", "UTF-16").encode("utf-16"), "it is not XML in UTF-8"),
        (FORMS["digikam"].encode("latin-1", "ignore"), "it is not XML in UTF-8"),
        (BOMB.encode() + FORMS["lightroom"].encode(), "it has a document type"),
        (b"<svg/>", "it is XML, but no XMP"),
        (description().replace(b"rdf:Description", b"rdf:Other"), "it is XML, but no XMP"),
        (
            FORMS["lightroom"].replace("xmlns:xap", 'xmlns:eat="http://x/" xmlns:xap').encode(),
            "prefixes xmp or eat",
        ),
        (None, "the folder cannot be read"),
    ],
)
def test_what_cannot_be_merged_is_left_alone(photo, content, reason):
    path = sidecar_paths(photo)[0]
    if content is None:
        os.mkdir(path)
    else:
        sidecar(photo, content)
    with pytest.raises(ValueError, match=re.escape(f"{path}: ")) as refusal:
        write_stars(photo, path, 4, 6.1, overwrite=True)
    assert reason in str(refusal.value)
    assert str(refusal.value).endswith("; left alone")
    assert content is None or Path(path).read_bytes() == content
    if reason.startswith("it "):
        with pytest.raises(ValueError, match=re.escape(reason)):
            read_person_rating(photo)


def test_no_sidecar_is_written_beside_a_photograph_that_is_gone(tmp_path):
    with pytest.raises(ValueError, match="No such file"):
        write_stars(str(tmp_path / "a.jpg"), str(tmp_path / "a.jpg.xmp"), 4, 6.1, overwrite=False)
    assert not os.listdir(tmp_path)


def test_other_tools_read_a_persons_stars_beside_our_score(photo):
    path = sidecar(
        photo, Packet(FORMS["exiftool"].encode()).merged(OURS).replace(b'Rating="4"', b'Rating="5"')
    )
    assert not write_stars(photo, path, 3, 5.0, overwrite=False)
    assert read_by_exiftool(path).items() >= {"Rating": "5", "Stars": "4", "Score": "5.0000"}.items()


@form
def test_our_stars_are_known_as_ours_when_another_program_has_written_the_sidecar(photo, form):
    path = sidecar(photo, Packet(FORMS[form].encode()).merged(OURS))
    read_by_exiv2(path)  # skips where there is none
    subprocess.run(["exiv2", "-M", "set Xmp.dc.subject forest", path], check=True)
    assert b"forest" in Path(path).read_bytes()
    assert values(path) == OURS
    assert read_person_rating(photo) is None


def test_a_new_sidecar_is_read_by_other_tools(photo):
    path = sidecar_paths(photo)[0]
    assert write_stars(photo, path, -1, 1.25, overwrite=False)
    assert read_by_exiftool(path)["Rating"] == "-1"
    assert read_by_exiv2(path) == {"Xmp.xmp.Rating": "-1", "Xmp.eat.stars": "-1", "Xmp.eat.score": "1.2500"}


def test_a_link_stays_a_link(photo, tmp_path):
    (tmp_path / "elsewhere.xmp").write_bytes(NEW)
    path = sidecar_paths(photo)[0]
    os.symlink("elsewhere.xmp", path)
    assert write_stars(photo, path, 3, 5.0, overwrite=False)
    assert os.path.islink(path)
    assert Packet((tmp_path / "elsewhere.xmp").read_bytes()).values[RATING] == "3"
