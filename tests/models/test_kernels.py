"""The Triton kernels under Triton's interpreter, which computes on a CPU, and compiled for GPUs that are not there."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers import compile_kernels
from helpers.sampled import make_inputs, relative_errors, sample_bias64, sample_features64, with_gradients
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.library import opcheck

from models import sampling
from models.attention import DeformableAttention
from models.sampling import sample_bias, sample_features

triton = pytest.importorskip("triton", reason="Triton is not there")
kernel_ops = pytest.importorskip("models.kernel_ops")

SLOW = pytest.mark.slow


def bias_by_kernel(dtype=torch.float32):
    return lambda table, positions: kernel_ops.position_bias(table, positions, dtype)


def features_by_kernel(dtype=torch.float32):
    return lambda features, positions: kernel_ops.sample_features(features, positions, dtype)


@pytest.fixture
def by_kernels(monkeypatch):
    """Sampling on a CPU takes the kernels, too."""
    monkeypatch.setattr(
        sampling, "choose_way", lambda *_: "kernels" if kernel_ops.triton_works() else "products"
    )


@pytest.mark.parametrize(
    ("side", "images", "groups", "heads"),
    [(1, 2, 1, 2), (7, 2, 2, 4), *(pytest.param(side, 1, 1, 1, marks=SLOW) for side in (12, 14, 24))],
)
def test_float32_is_within_2e_6_of_float64(side, images, groups, heads, monkeypatch):
    """With more keys at a time than a GPU takes: the interpreter is slow."""
    real_settings = kernel_ops.bias_backward_settings
    monkeypatch.setattr(
        kernel_ops, "bias_backward_settings", lambda *kind: real_settings(*kind) | {"KEYS": 64}
    )
    table, positions, features = make_inputs(side, images, groups, heads, dim=12)
    for source, kernel, exact in (
        (table, bias_by_kernel(), sample_bias64),
        (features, features_by_kernel(), sample_features64),
    ):
        *expected, slopes = with_gradients(exact, source, positions, torch.float64)
        *found, found_slopes = with_gradients(kernel, source, positions)
        assert max(relative_errors(found, expected)) <= 2e-6
        assert (found_slopes - slopes).norm() <= 2e-6 * slopes.norm()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_adds_at_most_half_to_the_error_of_rounding(dtype, monkeypatch):
    """The interpreter knows no TF32, and truncates to bfloat16: here both ways truncate, as no GPU does worse."""
    builder = triton.runtime.interpreter.InterpreterBuilder
    exact_dot = builder.create_dot

    def tf32_dot(self, a, b, total, precision, imprecise):
        for factor in (a, b) if "TF32" in str(precision) else ():
            assert factor.data.dtype == np.float32
            factor.data = (factor.data.view(np.uint32) & 0xFFFFE000).view(np.float32)
        return exact_dot(self, a, b, total, precision, imprecise)

    monkeypatch.setattr(builder, "create_dot", tf32_dot)

    def round_to(out):
        if dtype == torch.bfloat16:  # forward only: the gradient is exact
            out = out + ((out.detach().view(torch.int32) & -0x10000).view(torch.float32) - out.detach())
        return out.to(dtype)

    table, positions, features = make_inputs(7, groups=2, heads=2)
    for source, kernel, today, exact in (
        (table, bias_by_kernel(dtype), sample_bias, sample_bias64),
        (features, features_by_kernel(dtype), sample_features, sample_features64),
    ):
        expected = with_gradients(exact, source, positions, torch.float64)
        by_today = with_gradients(lambda *tensors, f=today: round_to(f(*tensors)), source, positions)
        limits = relative_errors(by_today, expected)
        found = with_gradients(kernel, source, positions)
        for error, limit in zip(relative_errors(found, expected), limits, strict=True):
            assert error <= 1.5 * limit


# On centres of cells of 3 and 5, on the border, just and far outside.
SPECIAL = [-1e6, -2.0, -1.5, -1.0000001, -1.0, -2 / 3, -0.5, 0.0, 1 / 3, 0.5, 1.0, 1.2, 3.0, 1e6]
PLACES = st.one_of(st.sampled_from(SPECIAL), st.floats(-3, 3, width=32))


@pytest.mark.slow
@given(st.lists(PLACES, min_size=18, max_size=18))
@settings(max_examples=10, deadline=None)
def test_any_positions_are_sampled_as_grid_sample_does(places):
    """To 1e-6 of the largest number. A slope on a cell's centre is that of its right side; of a bias, that of one side."""
    table, _, features = make_inputs(3, dim=3)
    positions = torch.tensor(places).view(1, 3, 3, 1, 2)
    expected = with_gradients(sample_features, features, positions)
    found = with_gradients(features_by_kernel(), features, positions)
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours - theirs).abs().max() <= 1e-6 * theirs.abs().max()
    *expected, slopes = with_gradients(sample_bias, table, positions)
    *found, found_slopes = with_gradients(bias_by_kernel(), table, positions)
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours - theirs).abs().max() <= 2e-6 * theirs.abs().max()
    places = ((torch.arange(3) + 0.5) / 1.5 - 1 - positions[..., None]) + 2
    smooth = ((places - places.round()).abs() > 1e-4).all(-1)
    assert ((found_slopes - slopes) * smooth).abs().max() <= 1e-5 * slopes.abs().max()


def test_rows_of_the_bias_begin_at_multiples_of_sixteen():
    table, positions, _ = make_inputs(3, images=2, groups=2, heads=4)
    bias = kernel_ops.position_bias(table, positions, torch.float16)
    assert bias.shape == (2, 4, 9, 9)
    assert bias.stride() == (4 * 9 * 16, 9 * 16, 16, 1)


def test_tensors_need_not_be_contiguous():
    table, positions, features = make_inputs(3, groups=2, heads=2)
    for source, kernel in ((table, bias_by_kernel()), (features, features_by_kernel())):
        expected = with_gradients(kernel, source, positions)
        strided = [tensor.mT.contiguous().mT for tensor in (source, positions)]
        leaves = [tensor.requires_grad_() for tensor in strided]
        out = kernel(*leaves)
        weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).mT.contiguous().mT
        for ours, theirs in zip(torch.autograd.grad(out, leaves, weights), expected[1:], strict=True):
            torch.testing.assert_close(ours, theirs)


@pytest.mark.slow
def test_operators_keep_pytorchs_rules():
    table, positions, features = make_inputs(3, groups=2, heads=2)
    leaves = [tensor.requires_grad_() for tensor in (table, positions, features)]
    opcheck(kernel_ops.position_bias, (*leaves[:2], torch.bfloat16))
    opcheck(kernel_ops.sample_features, (leaves[2], positions, torch.bfloat16))


@pytest.mark.slow
@pytest.mark.parametrize("way", ["kernels", "products"])
def test_a_layer_is_traced_whole_and_computes_as_with_grid_sample(way, by_kernels, monkeypatch):
    """Forward and backward. With products the bias is float32, as on a CPU."""
    if way == "products":
        monkeypatch.setattr(sampling, "choose_way", lambda *_: "products")
    torch.manual_seed(0)
    layer = DeformableAttention(16, 2, 2, 4, 3, interest_points="image")
    x = torch.randn(2, 4, 4, 16)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    results = []
    for run in (compiled, layer):
        out, _ = run(x)
        results.append((out.detach(), *torch.autograd.grad(out.square().sum(), list(layer.parameters()))))
    monkeypatch.undo()
    out, _ = layer(x)
    results.append((out.detach(), *torch.autograd.grad(out.square().sum(), list(layer.parameters()))))
    for traced, eager, sampled in zip(*results, strict=True):
        torch.testing.assert_close(traced, sampled, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(eager, sampled, rtol=1e-4, atol=1e-5)


def test_half_precision_comes_from_autocast(by_kernels):
    table, positions, features = make_inputs(3)
    with torch.autocast("cpu", torch.bfloat16):
        assert (
            sample_bias(table, positions).dtype
            == sample_features(features, positions).dtype
            == torch.bfloat16
        )
    assert sample_bias(table, positions).dtype == sample_features(features, positions).dtype == torch.float32


def test_a_gpu_on_which_triton_fails_is_told_once(monkeypatch, caplog):
    def fail(*_, **__):
        raise RuntimeError("no C compiler")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "zeros", fail)
    kernel_ops._try_triton.cache_clear()
    try:
        assert [kernel_ops.triton_works() for _ in range(2)] == [False, False]
    finally:
        kernel_ops._try_triton.cache_clear()
    assert caplog.messages == ["Triton does not work here, so sampling on the GPU is slower: no C compiler"]


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
def test_kernels_compile_for_gpus_and_keep_their_numbers_in_registers(capability):
    """No stack in the compiled code, and shared memory for two programs at once on any GPU from the A100 on."""
    cases, shape = [], {"SIDE": 14, "DIM": 128, "WIDTH": 128, "KEYS": 32}
    for kind, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        cases += [
            ("bias_backward", kind, kernel_ops.bias_backward_settings(side, dtype)) for side in (14, 24)
        ]
        cases += [("features_backward", kind, shape | kernel_ops.features_backward_settings(dtype))]
    cases += [
        ("bias_backward", "fp16", kernel_ops.bias_backward_settings(14, torch.float16)),
        ("bias_forward", "bf16", {"SIDE": 14, "KEYS": 32, "QUERIES": 64}),
        ("features_forward", "bf16", shape),
    ]
    words = [sys.executable, compile_kernels.__file__, kernel_ops.kernels.__file__, str(capability)]
    environment = os.environ | {"TRITON_INTERPRET": "0"}
    run = subprocess.run([*words, json.dumps(cases)], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert len(found) == len(cases)
    for case, (registers, stack, shared) in zip(cases, found, strict=True):
        assert (stack, shared <= 49_500) == (0, True), (case, registers, stack, shared)
