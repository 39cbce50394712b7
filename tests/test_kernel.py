"""The Triton kernel gives what the plain path gives, gradients included: by Triton's interpreter where there is no GPU."""

import os
import subprocess
import sys

import pytest
import torch

from models.attention import attention
from models.sampling import sample_bias

pytest.importorskip("triton")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

# Ahead of time, for the matrix units and shared memory of an H100: Triton needs no GPU for that.
COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
import kernel
sizes = {"SIDE": 14, "CHANNELS": 32, "SIZE": 32, "SCALE": 32**-0.5, "KEYS": 16, "TILE": 16, "PRECISION": "tf32"}
kinds = {"heads": "i32", "groups": "i32", "images": "i32"} | dict.fromkeys(sizes, "constexpr")
half = ("q", "k", "v", "out", "grad", "grad_q", "grad_k", "grad_v")
for function in (kernel._forward, kernel._backward):
    kinds = kinds | {n: "*bf16" if n in half else "*fp32" for n in function.arg_names if n not in kinds}
    source = triton.compiler.ASTSource(function, {n: kinds[n] for n in function.arg_names}, sizes)
    print(triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 8}).metadata.shared)
"""


def inputs(side, dtype, heads=4, groups=2, channels=32):
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 2, heads, side * side, channels, generator=generator).to(dtype)
    table = torch.randn(heads, 2 * side - 1, 2 * side - 1, generator=generator)
    positions = torch.randn(2, side, side, groups, 2, generator=generator)
    positions[0, 0, :2] = torch.tensor([1e9, -1.0])  # far outside, and on the border
    return [tensor.to(DEVICE).requires_grad_() for tensor in (q, k, v, table, positions)]


def plain(q, k, v, table, positions):
    return attention(q, k, v, sample_bias(table, positions), 0.0)


def results(function, tensors):
    out = function(*tensors)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out)
    return [out, *torch.autograd.grad(out, tensors, weights)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("side", "dtype", "tolerance"),
    [(side, torch.float32, 1e-5) for side in (14, 7, 2)] + [(7, torch.bfloat16, 1e-2)],
)
def test_kernel_is_the_plain_path_with_its_gradients(side, dtype, tolerance):
    from models.kernel import attend

    tensors = inputs(side, dtype)
    expected = results(plain, [tensor.detach().float().requires_grad_() for tensor in tensors])
    for found, right in zip(results(attend, tensors), expected, strict=True):
        assert found.isfinite().all()
        assert (found.float() - right).norm() <= tolerance * right.norm()


def test_kernel_says_what_it_takes():
    from models.kernel import takes

    assert takes(14, 14, 32)
    assert takes(7, 7, 32)
    assert not takes(24, 24, 32)
    assert not takes(14, 14, 24)


@pytest.mark.slow
def test_kernel_compiles_for_an_h100(tmp_path):
    """Both ways, in bfloat16, and their shared memory is less than that of one of its processors."""
    environment = os.environ | {
        "TRITON_INTERPRET": "0",
        "TRITON_CACHE_DIR": str(tmp_path),
        "PYTHONPATH": "models",
    }
    ran = subprocess.run([sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-2000:]
    shared = [int(line) for line in ran.stdout.split()]
    assert len(shared) == 2
    assert max(shared) <= 227 * 1024
