"""The benchmark of steps: images per second, ratios, FLOPs and profiles of EAT's networks and timm's."""

import json

import pytest
import torch

from benchmarks import throughput
from models import create_model


@pytest.mark.slow
def test_networks_are_measured_in_turn_and_printed(tmp_path, capsys, monkeypatch):
    # It starts a process for each network.
    monkeypatch.setattr(throughput, "measure_peak_memory", lambda *_: 1.0)
    names, file = ["plain/eat_test", "eat_test", "timm/test_vit"], tmp_path / "rows.json"
    words = ["--models", *names, "--batches", "2", "--precisions", "float32", "bf16", "--repeats", "2"]
    assert throughput.main([*words, "--device", "cpu", "--profile", "--json", str(file)]) == 0
    rows = json.loads(file.read_text())["rows"]
    modes = [row["mode"] for row in rows]
    assert modes == ["forward"] * 5 + ["training"] * 5
    # The plain path knows one precision.
    assert [row["precision"] for row in rows[:5]] == ["float32", "float32", "bf16", "float32", "bf16"]
    assert rows[0]["ratio"] == rows[0]["ratio_lowest"] == rows[0]["ratio_highest"] == 1.0
    for row in rows:
        assert 0 < row["lowest"] <= row["images_per_second"] <= row["highest"]
    printed = capsys.readouterr().out
    assert printed.count("| eat_test | 2 | bf16 | off |") == 2
    profiles = printed.split("| kernel | ms | calls |\n")[1:]
    assert [profile.count("\n| ") for profile in profiles] == [10, 10, 10]


def test_flops_are_counted_by_hand():
    """A linear layer of 3 x 4 x 4 numbers to 10, 2 for each multiply-add."""
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 10))
    model.img_size = 4
    assert throughput.count_forward_gflop(model) == 2 * 48 * 10 / 1e9


@pytest.mark.slow
def test_the_papers_network_takes_31_gflop():
    assert round(throughput.count_forward_gflop(create_model("eat_base")), 1) == 31.4


@pytest.mark.slow
def test_peak_memory_is_that_of_a_process_of_its_own():
    ballast = torch.ones(2**28)  # 1,024 MiB here
    assert 200 < throughput.measure_peak_memory("eat_nano", "float32", "off", 1, False, "cpu") < 1024
    assert ballast[-1] == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--models resnet18", "--models resnet18: no such network"),
        ("--models timm/resnet_18", "timm has no such model"),
        ("--batches 0", "--batches"),
        ("--precisions int8", "int8"),
        ("--device cuda", "no GPU is here"),
    ],
)
def test_bad_requests_are_one_line_and_status_2(words, message, capsys):
    try:
        status = throughput.main(words.split())
    except SystemExit as stop:
        status = stop.code
    error = capsys.readouterr().err
    assert status == 2
    assert message in error
    assert len(error.splitlines()) == 1
