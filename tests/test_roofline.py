"""What a step is expected to take on a GPU: its operations are counted, to the byte where one can count by hand."""

import re

import pytest
import torch
from small import NANO, SMALL

from benchmarks import roofline
from benchmarks.fake_cuda import DEVICE, fake_cuda
from benchmarks.roofline import Cost, Counting, count, forward_gflop
from models import create_model, variants


def test_operations_are_counted_by_hand():
    """Products, a depthwise convolution's gradients, views, numbers that are repeated, scattered additions."""
    with fake_cuda(), Counting() as counting:

        def empty(*shape, dtype=torch.bfloat16):
            return torch.empty(shape, dtype=dtype, device=DEVICE)

        empty(64, 32).t().reshape(8, 256).unflatten(0, (2, 4)) @ empty(256, 16)
        empty(8, 1).expand(8, 100) + empty(1)
        wide, weight = empty(2, 6, 8, 8).requires_grad_(), empty(6, 1, 3, 3).requires_grad_()
        torch.nn.functional.conv2d(wide, weight, padding=1, groups=6).sum().backward()
        maps, grid = (
            empty(*shape, dtype=torch.float32).requires_grad_() for shape in ((2, 3, 5, 5), (2, 4, 4, 2))
        )
        torch.nn.functional.grid_sample(maps, grid, mode="bilinear", align_corners=True).sum().backward()
    costs = {name: cost for (name, _), cost in counting.costs.items()}
    assert costs["mm"].flops == {torch.bfloat16: 2 * 8 * 256 * 16}
    assert costs["mm"].bytes == 2 * (8 * 256 + 256 * 16 + 8 * 16)
    assert costs["add"].bytes == 2 * (8 + 1 + 800)
    assert costs["convolution_backward"].flops == {torch.bfloat16: 2 * 2 * (2 * 6 * 8 * 8) * 9}
    samples, numbers = 2 * 3 * 4 * 4, 2 * 3 * 5 * 5 + 2 * 4 * 4 * 2
    # The gradient of a sum is one number, repeated.
    assert costs["grid_sampler_2d_backward"].bytes == 4 + 2 * 4 * numbers + samples * 4 * 64
    assert not {"t", "view", "expand", "empty"} & set(costs)


def test_peak_is_of_tensors_that_live_at_once():
    with fake_cuda(), Counting() as counting:
        first = torch.empty(1000, device=DEVICE)
        second = first.view(10, 100) + 1  # a view has no memory of its own
        assert (counting.live, counting.peak) == (8000, 8000)
        del first
        assert (counting.live, counting.peak) == (4000, 8000)
        second = second.bfloat16()
    assert (counting.live, counting.peak) == (2000, 8000)


def test_time_is_the_longer_of_products_and_memory():
    cost = Cost(1, {torch.bfloat16: 8e12, torch.float32: 1.25e11}, bytes=int(3e12))
    rates = roofline.rates_of(4.0, None, "bf16")
    assert rates[torch.float32] == 2.5e11
    assert cost.seconds(rates, 1e12) == 3.0
    assert cost.seconds(rates, 2e12) == 2.5


@pytest.mark.slow
def test_forward_pass_of_the_papers_network_has_the_known_number_of_flops():
    """As docs/performance.md has it, 2 for each multiply-add."""
    assert round(forward_gflop("eat_base"), 1) == 31.4


def flops(counting):
    return sum(sum(cost.flops.values()) for cost in counting.costs.values())


@pytest.mark.slow
def test_a_step_has_three_forward_passes_products_and_memory_grows_with_the_batch(monkeypatch):
    wide = {name: NANO[name] for name in ("dim_stem", "dims", "heads", "groups")}
    monkeypatch.setattr(
        variants, "NANO", SMALL | wide
    )  # SMALL's weights weigh nothing beside what a step keeps
    small, large = count("eat_nano", 2, way="sampled"), count("eat_nano", 6)
    # And the logits of fused attention once more.
    assert 1 < flops(small) / (2 * 3 * 1e9 * forward_gflop("eat_nano")) < 1.1
    assert flops(large) == pytest.approx(3 * flops(small), rel=1e-3)
    with torch.device("meta"):
        parameters = sum(p.numel() for p in create_model("eat_nano").parameters())
    weights = 4 * 4 * parameters  # float32, with gradients and Adam's two moments
    assert weights * 0.5 < 1.5 * small.peak - 0.5 * large.peak < weights * 1.5


@pytest.mark.slow
def test_dense_ways_scatter_nothing():
    names = {way: {name for name, _ in count("eat_nano", 2, way=way).costs} for way in ("sampled", "dense")}
    assert "grid_sampler_2d_backward" in names["sampled"]
    assert not any(name.startswith("grid_sampler") for name in names["dense"])


@pytest.mark.slow
def test_command_prints_its_tables(capsys):
    words = "--tflops 790 --bandwidth 4.8 --model eat_nano --batch 2 --memory_batches 4 --precision fp16"
    assert roofline.main(words.split()) == 0
    out = capsys.readouterr().out
    assert "computed, not measured" in out.splitlines()[0]
    rows = [line for line in out.splitlines() if line.startswith("| ")]
    assert len(rows) > 8
    assert rows[-1].startswith("| all |")
    assert sum(int(row.split("|")[2]) for row in rows[1:-1]) == int(rows[-1].split("|")[2])
    assert len([line for line in out.splitlines() if line.startswith("- ")]) == 5
    assert "images/s expected" in out
    assert re.search(r"by batch, of live tensors: 2: 0\.\d, 4: 0\.\d\n", out)


@pytest.mark.parametrize(
    ("words", "what"),
    [
        ("--tflops 0 --bandwidth 1", "--tflops 0 must be greater than 0"),
        ("--tflops 1 --bandwidth -1", "--bandwidth -1 must be greater than 0"),
        ("--tflops 1 --bandwidth 1 --float32_tflops 0", "--float32_tflops 0 must be greater than 0"),
        ("--tflops nan --bandwidth 1", "--tflops nan is not a finite number"),
        ("--bandwidth 1", "--tflops"),
        ("--tflops 1 --bandwidth 1 --model resnet", "invalid choice: 'resnet'"),
        ("--tflops 1 --bandwidth 1 --batch 0", "--batch 0 must be at least 1"),
        ("--tflops 1 --bandwidth 1 --memory_batches 0", "--memory_batches 0 must be at least 1"),
    ],
)
def test_bad_requests_are_one_line_and_status_2(words, what, capsys):
    try:
        status = roofline.main(words.split())
    except SystemExit as stop:
        status = stop.code
    error = capsys.readouterr().err
    assert status == 2
    assert what in error
    assert len(error.splitlines()) == 1
