"""The benchmark of reading photographs."""

import json

from helpers.data import make_pictures

from benchmarks import loading


def test_all_ways_are_timed_and_pixels_compared(tmp_path, capsys):
    make_pictures(tmp_path, ["a.jpg", "b.jpeg", "c.png"])
    words = f"--images {tmp_path} --count 3 --repeats 1 --json {tmp_path / 'rows.json'}"
    assert loading.main(words.split()) == 0
    content = json.loads((tmp_path / "rows.json").read_text())
    assert [row["way"] for row in content["speed"]] == ["release", "pil", "fast", "cache"] * 2
    assert [row["pictures"] for row in content["pixels"]] == [2, 2, 2]  # JPEGs alone
    assert all(row["largest"] <= 1 for row in content["pixels"])
    assert "| ava | release |" in capsys.readouterr().out


def test_repeated_jpegs_are_taken_in_turn(tmp_path):
    make_pictures(tmp_path, ["b.jpg", "a.jpg"])
    assert loading.repeat_jpegs(tmp_path, 3).images.tolist() == ["a.jpg", "b.jpg", "a.jpg"]


def test_a_folder_without_jpegs_is_one_line_and_status_2(tmp_path, capsys):
    assert loading.main(["--images", str(tmp_path)]) == 2
    assert f"--images {tmp_path}: no folder with JPEGs" in capsys.readouterr().err
