"""The benchmark of steps: images per second, ratios, FLOPs and profiles of EAT's networks and timm's."""

import json
import signal

import pytest
import torch

from benchmarks import throughput
from models import create_model


@pytest.fixture
def rehearse(tmp_path, monkeypatch, capsys):
    """rehearse(*words): what the benchmark writes and prints on the CPU, with tiny networks at batch 2."""
    monkeypatch.setattr(
        throughput, "measure_peak_memory", lambda *_: 1.0
    )  # starts a process for each network

    monkeypatch.setitem(throughput.MATRIX_SIDE, "cpu", 64)
    throughput.measure_matrix_rate.cache_clear()

    def go(*words):
        file = tmp_path / "rows.json"
        words = ["--batches", "2", "--repeats", "1", "--device", "cpu", "--json", str(file), *words]
        assert throughput.main(words) == 0
        return json.loads(file.read_text()), capsys.readouterr()

    return go


@pytest.mark.slow
def test_networks_are_measured_in_turn_and_printed(rehearse, monkeypatch):
    monkeypatch.setattr(throughput, "compile_network", lambda model: None)  # takes minutes
    names = ["eat_test", "timm/test_vit", "plain/eat_test"]
    report, (out, _) = rehearse("--models", *names, "--precisions", "bf16", "--compiled", "off", "on")
    rows = [(row["model"], row["precision"], row["compiled"], row["mode"]) for row in report["rows"]]
    ours, theirs, plain = names
    assert rows == [
        (ours, "bf16", "off", "training"),
        (theirs, "bf16", "off", "training"),
        (ours, "bf16", "off", "inference"),
        (theirs, "bf16", "off", "inference"),
        (ours, "bf16", "on", "training"),
        (theirs, "bf16", "on", "training"),
        (ours, "bf16", "on", "inference"),
        (theirs, "bf16", "on", "inference"),
        (plain, "float32", "off", "training"),  # the plain way knows one precision
        (plain, "float32", "off", "inference"),
    ]
    assert report["rows"][0]["ratio"] == report["rows"][0]["ratio_lowest"] == 1.0
    for row in report["rows"]:
        assert 0 < row["lowest"] <= row["images_per_second"] <= row["highest"]
        assert row["share_of_matrix_rate"] > 0
    table, profile = out.split("| kernel | ms | calls |\n")
    assert table.count("\n| ") - 1 == len(rows)
    assert table.count("| eat_test | 2 | bf16 | off |") == 2
    assert profile.count("\n| ") == len(report["profile"]) == 10


@pytest.mark.slow
def test_a_failure_or_the_end_of_the_budget_leaves_the_rows_that_are_there(rehearse, monkeypatch):
    measure, groups = throughput.measure, []

    def over_in_the_third_one(group, *rest):
        groups.append(group)
        if len(groups) == 2:
            raise torch.OutOfMemoryError("no memory\n")
        if len(groups) == 3:
            signal.raise_signal(signal.SIGALRM)
        return measure(group, *rest)

    monkeypatch.setattr(throughput, "measure", over_in_the_third_one)
    report, (out, err) = rehearse(
        "--models", "eat_test", "timm/test_vit", "--budget", "1000", "--batches", "2", "3"
    )
    assert [row["mode"] for row in report["rows"]] == ["training"] * 2
    assert out.count("| eat_test |") == 1
    assert "no memory\nThe seconds of --budget are over." in err


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
