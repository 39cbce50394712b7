"""The Triton kernel, by Triton's interpreter, gives what the plain path gives, gradients included."""

import os

import pytest
import torch

from models.attention import attention
from models.sampling import sample_bias

kernel = None


@pytest.fixture(scope="module", autouse=True)
def interpreted():
    """The kernel of this module alone is interpreted: a decorator reads the environment when it is run."""
    global kernel
    pytest.importorskip("triton")
    before = os.environ.get("TRITON_INTERPRET")
    os.environ["TRITON_INTERPRET"] = "1"
    from models import kernel as module

    kernel = module
    yield
    os.environ.pop("TRITON_INTERPRET")
    if before is not None:
        os.environ["TRITON_INTERPRET"] = before


def inputs(side, dtype, heads=4, groups=2, channels=32):
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 2, heads, side * side, channels, generator=generator).to(dtype)
    table = torch.randn(heads, 2 * side - 1, 2 * side - 1, generator=generator)
    positions = torch.randn(2, side, side, groups, 2, generator=generator)
    positions[0, 0, :2] = torch.tensor([1e9, -1.0])  # far outside, and on the border
    return [tensor.requires_grad_() for tensor in (q, k, v, table, positions)]


def plain(q, k, v, table, positions):
    return attention(q, k, v, sample_bias(table, positions), 0.0)


def results(function, tensors, generator):
    out = function(*tensors)
    weights = torch.randn(out.shape, generator=generator.manual_seed(1)).to(out.dtype)
    return [out, *torch.autograd.grad(out, tensors, weights)]


@pytest.mark.parametrize("side", [14, 7, 2])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
def test_kernel_is_the_plain_path_with_its_gradients(side, dtype, tolerance):
    tensors, generator = inputs(side, dtype), torch.Generator()
    exact = [tensor.detach().float().requires_grad_() for tensor in tensors]
    expected = results(plain, exact, generator)
    for found, right in zip(results(kernel.attend, tensors, generator), expected, strict=True):
        assert found.isfinite().all()
        assert (found.float() - right).norm() <= tolerance * right.norm()


def test_kernel_says_what_it_takes():
    assert kernel.takes(14, 14, 32)
    assert kernel.takes(7, 7, 32)
    assert not kernel.takes(24, 24, 32)
    assert not kernel.takes(14, 14, 24)
