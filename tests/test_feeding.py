"""The benchmark of a batch's way to the training process."""

import pytest

from benchmarks import feeding


@pytest.mark.slow
def test_every_part_of_the_way_is_timed_and_set_against_a_step(capsys):
    found = feeding.way_of_a_batch(4, 3, 1, 0.0)
    assert {len(values) for values in found.values()} == {3}
    feeding.show({"copy": [1.0, 2.0, 4.0]}, batch=10, rate=100)
    printed = capsys.readouterr().out
    assert "10 images at 100 images/s takes 100.0 ms" in printed
    assert "| copy | 2.00 (1.00 to 4.00) | 2.0% |" in printed


def test_a_folder_without_pictures_is_one_line(tmp_path, capsys):
    assert feeding.main(["--images", str(tmp_path)]) == 2
    assert "no folder with JPEGs" in capsys.readouterr().err
