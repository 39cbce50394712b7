"""What a training step would take on a GPU that is not here, computed from two of its numbers. Nothing is measured.

    python -m benchmarks.roofline --tflops 790 --bandwidth 4.8
    python -m benchmarks.roofline --tflops 312 --bandwidth 2.039 --float32_tflops 19.5 --batch 128 --way dense

One step (forward, EMD loss, backward, clipping's norm, fused Adam) runs on a CUDA device without numbers, and its
operations are counted as PyTorch runs them uncompiled: each reads its inputs from memory and writes its outputs, views
cost nothing. An operation takes the longer of its matrix products' time and its memory's. Left out: the launch of
kernels, caches, fusion, and that no kernel reaches the whole rate.
"""

from __future__ import annotations

import sys
import weakref
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from benchmarks.fake_cuda import DEVICE, fake_cuda, moved
from commands.errors import guarded
from commands.parser import Parser
from models import EAT, create_model, list_models, ways
from models.attention import DEFORMABLE_WAYS, WINDOW_WAYS
from option import InputError, Option
from training.steps import Precision, Schedule, Stepper, make_optimizer
from util import emd_loss

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "float32": None}
SECTOR = 32  # bytes, the least that a GPU's memory moves

# The kinds of operations by the beginnings of their names; the first that fits.
KINDS = {
    "linear layers": ("mm", "addmm"),
    "batched products": ("bmm", "baddbmm"),
    "convolutions": ("convolution",),
    "fused attention": ("_scaled_dot_product",),
    "sampling": ("grid_sampler",),
    "layer norms": ("native_layer_norm",),
    "GELU": ("gelu",),
    "softmax": ("_softmax", "_safe_softmax"),
    "optimiser": ("_fused_adam", "_amp", "_foreach", "linalg_vector_norm"),
    "casts": ("_to_copy",),
    "copies": ("clone", "copy_", "cat", "stack", "roll", "repeat", "flip", "constant_pad_nd", "slice_backward",
               "select_backward"),
    "sums": ("sum", "mean", "cumsum"),
    "lookups": ("index",),
    "element by element": ("",),
}  # fmt: skip
FREE = ("empty", "new_empty", "empty_like", "empty_strided", "_unsafe_view")  # beside the views

# fmt: off
TABLE = {"": (
    Option("tflops", float, None, "rate of matrix products in the precision, TFLOP/s (2 per multiply-add)", positive=True, required=True),
    Option("bandwidth", float, None, "of the memory, TB/s", positive=True, required=True),
    Option("float32_tflops", float, None, "rate of float32 products, without TF32 (default: a sixteenth of --tflops, an A100's)", positive=True),
    Option("model", str, "eat_base", "the network", choices=tuple(list_models())),
    Option("batch", int, 64, "images in a step", low=1),
    Option("memory_batches", int, [16, 64, 128, 256], "batches whose peak memory is computed, too", low=1, nargs="*"),
    Option("precision", str, "bf16", "of matrix products", choices=tuple(DTYPES)),
    Option("way", str, "sampled", "of deformable attention", choices=DEFORMABLE_WAYS),
    Option("windows", str, "fused", "attention in windows", choices=WINDOW_WAYS),
)}
# fmt: on


@dataclass
class Cost:
    """What operations of one name do: their number, FLOPs by the type of their products, bytes to and from memory."""

    calls: int = 0
    flops: Counter = field(default_factory=Counter)
    bytes: int = 0

    def seconds(self, rates: dict[torch.dtype, float], bandwidth: float) -> float:
        """At `rates` (FLOP/s by type) and `bandwidth` (bytes/s)."""
        return max(sum(flops / rates[dtype] for dtype, flops in self.flops.items()), self.bytes / bandwidth)


class Counting(TorchDispatchMode):
    """A context in which operations are counted by name and shapes, and the memory of live tensors is followed, in bytes."""

    def __init__(self):
        super().__init__()
        self.costs: dict[tuple[str, str], Cost] = defaultdict(Cost)
        self.live = self.peak = 0
        self.known: weakref.WeakSet = weakref.WeakSet()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        found = function(*args, **kwargs)
        if function.namespace == "aten":
            inputs = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
            outputs = [t for t in tree_leaves(found) if isinstance(t, Tensor)]
            self.keep(outputs)
            name = function.overloadpacket.__name__
            if not (function.is_view or name in FREE):
                self.count(function.overloadpacket, name, inputs, outputs, args, kwargs, found)
        return found

    def count(self, packet, name: str, inputs, outputs, args, kwargs, found) -> None:
        shapes = " ".join("x".join(map(str, t.shape)) for t in inputs[:2] if t.ndim)
        dtype = inputs[0].dtype if inputs else outputs[0].dtype
        cost = self.costs[name, f"{shapes} in {str(dtype).removeprefix('torch.')}".strip()]
        cost.calls += 1
        cost.bytes += sum(map(stored, inputs)) + sum(map(stored, outputs))
        if (
            name == "grid_sampler_2d_backward"
        ):  # each sample adds to four cells, wherever they lie: read, write
            cost.bytes += 4 * inputs[0].numel() * 2 * SECTOR
        if name == "convolution_backward":
            cost.flops.update(_convolution_backward(*args))
        elif packet in flop_registry:
            cost.flops[dtype] += flop_registry[packet](*args, **kwargs, out_val=found)

    def keep(self, tensors: list[Tensor]) -> None:
        """Count the memory of tensors until nobody has them any more; what shares memory counts once."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            if tensor.device.type == "cuda" and storage not in self.known:
                self.known.add(storage)
                size = storage.nbytes()
                self.live += size
                self.peak = max(self.peak, self.live)
                weakref.finalize(storage, self.free, size)

    def free(self, size: int) -> None:
        self.live -= size


def stored(tensor: Tensor) -> int:
    """Bytes of the numbers in memory behind a tensor, those that it repeats counted once."""
    count = 1
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        count *= size if stride else min(size, 1)
    return count * tensor.element_size()


def _convolution_backward(grad: Tensor, x: Tensor, weight: Tensor, *rest) -> dict:
    """torch's own count takes a depthwise convolution for a full one. rest: ends with which gradients are asked for."""
    return {grad.dtype: 2 * grad.numel() * weight[0].numel() * sum(rest[-1][:2])}


class Step:
    """A training step of a network on the fake device."""

    def __init__(self, model, batch: int, precision: str, way: str, windows: str):
        chosen = {name: way if name.startswith("D") else windows for name in ways.layers(model)}
        ways.set_ways(model, chosen)
        self.model, self.precision = model.train(), Precision(DEVICE, DTYPES[precision])
        self.images = torch.empty(batch, 3, model.img_size, model.img_size, device=DEVICE)
        self.target = torch.empty(batch, model.num_classes, device=DEVICE)
        optimizer = make_optimizer(model, "adam", 0.0)
        self.stepper = Stepper(model, optimizer, Schedule(1e-6, 1), self.precision)

    def __call__(self) -> None:
        with self.precision():
            output = self.model(self.images)
        # Not by a name: a loss that is kept keeps all activations.
        self.stepper.scaler.scale(emd_loss(output.float(), self.target)).backward()
        self.stepper.update(0.0)


@contextmanager
def on_fake_device(name: str) -> Iterator[EAT]:
    with torch.device("meta"):  # numbers would be drawn in vain
        model = create_model(name)
    with fake_cuda():
        yield moved(model)


def count(
    name: str, batch: int, precision: str = "bf16", way: str = "sampled", windows: str = "fused"
) -> Counting:
    """A step in the steady state, the optimiser's moments made; the peak of its memory, weights and moments with it."""
    with on_fake_device(name) as model, Counting() as counting:
        step = Step(model, batch, precision, way, windows)
        counting.keep(list(model.state_dict().values()))
        for parameter in model.parameters():
            parameter.grad = torch.empty_like(parameter)
        step.stepper.optimizer.step()
        step.stepper.optimizer.zero_grad()
        counting.costs.clear()
        counting.peak = counting.live
        step()
    return counting


def forward_gflop(name: str) -> float:
    """GFLOP (2 per multiply-add) of one image's forward pass, as `benchmarks.throughput` counts them."""
    with on_fake_device(name) as model, torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(torch.empty(1, 3, model.img_size, model.img_size, device=DEVICE))
    return counter.get_total_flops() / 1e9


def kind_of(name: str) -> str:
    return next(kind for kind, starts in KINDS.items() if name.startswith(starts))


def report(given) -> list[str]:
    """The tables, in Markdown, for the values of TABLE."""
    how = (given.precision, given.way, given.windows)
    counting = count(given.model, given.batch, *how)
    rates, bandwidth = rates_of(given.tflops, given.float32_tflops, given.precision), given.bandwidth * 1e12
    seconds = {key: cost.seconds(rates, bandwidth) for key, cost in counting.costs.items()}
    per_second = given.batch / sum(seconds.values())
    share = per_second * 3 * forward_gflop(given.model) / (given.tflops * 1e3)
    where = f"at {given.tflops:g} TFLOP/s and {given.bandwidth:g} TB/s"
    lines = [f"{given.model}, batch {given.batch}, {', '.join(how)}, {where}: computed, not measured", ""]
    lines += [*by_kind(counting.costs, seconds), "", "The five dearest:", ""]
    for name, shapes in sorted(seconds, key=seconds.get, reverse=True)[:5]:
        calls, ms = counting.costs[name, shapes].calls, 1e3 * seconds[name, shapes]
        lines.append(f"- {ms:.2f} ms: {calls} x `{name}` of {shapes}")
    peaks = {batch: count(given.model, batch, *how).peak for batch in {*given.memory_batches} - {given.batch}}
    peaks[given.batch] = counting.peak
    shown = ", ".join(f"{batch}: {peak / 2**30:.1f}" for batch, peak in sorted(peaks.items()))
    return [
        *lines,
        "",
        f"{per_second:.0f} images/s expected; {share:.0%} of the matrix rate, by three forward passes' products",
        f"peak memory in GiB by batch, of live tensors: {shown}",
    ]


def rates_of(tflops: float, float32_tflops: float | None, precision: str) -> dict:
    """FLOP/s by type."""
    half = tflops * 1e12
    exact = half if precision == "float32" else (float32_tflops or tflops / 16) * 1e12
    return {torch.bfloat16: half, torch.float16: half, torch.float32: exact}


def by_kind(costs: dict[tuple[str, str], Cost], seconds: dict[tuple[str, str], float]) -> list[str]:
    """A table with a row for each of KINDS, the dearest first."""
    groups = defaultdict(list)
    for key in costs:
        groups[next(kind for kind, starts in KINDS.items() if key[0].startswith(starts))].append(key)
    order = sorted(groups, key=lambda kind: -sum(seconds[key] for key in groups[kind]))
    lines = ["| operations | calls | GFLOP | GB | ms | share |", "|---" * 6 + "|"]
    for kind, keys in [(kind, groups[kind]) for kind in order] + [("all", list(costs))]:
        calls, spent = sum(costs[key].calls for key in keys), sum(seconds[key] for key in keys)
        gflop = sum(sum(costs[key].flops.values()) for key in keys) / 1e9
        gb, share = sum(costs[key].bytes for key in keys) / 1e9, spent / sum(seconds.values())
        lines.append(f"| {kind} | {calls} | {gflop:.0f} | {gb:.2f} | {1e3 * spent:.2f} | {share:.0%} |")
    return lines


def main(argv: list[str] | None = None) -> int:
    parser = Parser(
        TABLE, prog="python -m benchmarks.roofline", description="What a training step would take on a GPU."
    )
    given = parser.parse_args(argv)

    def work() -> None:
        for option in TABLE[""]:
            if option.positive and (value := getattr(given, option.name)) is not None and value <= 0:
                raise InputError(f"--{option.name} {value:g} must be greater than 0")
        print("\n".join(report(given)))

    return guarded("roofline", work)


if __name__ == "__main__":
    sys.exit(main())
