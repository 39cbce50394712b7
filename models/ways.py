"""The ways an attention layer may be computed by: which there are, and the fastest of them on this machine, by measuring."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .attention import DEFORMABLE_WAYS, WINDOW_WAYS, DeformableAttention, WindowAttention
from .eat import tracking_nothing

REPEATS = 5  # of a timing; the fastest counts
EXACT, ROUNDED = 1e-5, 2e-2  # relative differences that rounding explains: in float32, and in fewer bits


def layers(model: nn.Module) -> dict[str, list[WindowAttention | DeformableAttention]]:
    """The attention layers by what they have in common, as `D 512 channels, 16 heads`."""
    found: dict[str, list] = {}
    for module in model.modules():
        if isinstance(module, DeformableAttention):
            found.setdefault(f"D {module.proj_q.in_channels} channels, {module.heads} heads", []).append(
                module
            )
        elif isinstance(module, WindowAttention):
            kind = "S" if hasattr(module, "attn_mask") else "L"
            name = f"{kind} {module.proj_qkv.in_features} channels, {module.heads} heads"
            found.setdefault(name, []).append(module)
    return found


def set_ways(model: nn.Module, ways: str | dict[str, str]) -> None:
    """Compute by `ways`: a way's name for all deformable layers, or what `ways_of` has said.

    Raises ValueError for a network without such layers.
    """
    groups = layers(model)
    if isinstance(ways, str):
        ways = {name: ways for name in groups if name.startswith("D")}
    if unknown := set(ways) - set(groups) or ({"no deformable layers"} if not ways else set()):
        raise ValueError(f"the ways of attention do not fit this network: {', '.join(sorted(unknown))}")
    for name, way in ways.items():
        for layer in groups[name]:
            layer.way = way


def ways_of(model: nn.Module) -> dict[str, str]:
    """The way of each kind of layer by the names of `layers`."""
    return {name: group[0].way for name, group in layers(model).items()}


def measure(
    model: nn.Module,
    images: Tensor,
    precision: Callable[[], object],
    tolerance: float,
    compiled: bool = False,
    train: bool = True,
    warn: Callable[[str], None] = print,
) -> dict[str, dict[str, float]]:
    """Milliseconds of each way of each kind of layer, forward and (`train`) backward, for these images.

    images: a normalised batch (B, 3, H, W) on the network's device. precision: makes the context of a forward pass.
    A way that raises, or whose output or gradients differ from those of the first way by more than `tolerance`
    (relative), is left out, with a line for `warn`. The network is left as it was.
    """
    found: dict[str, dict[str, float]] = {}
    with _undisturbed(model, images.device):
        inputs = _inputs(model, images, precision)
        for name, group in layers(model).items():
            layer, x, times = group[0], inputs[group[0]], {}
            plain, _ = _try(layer, x, precision, False, train)
            for way in WINDOW_WAYS if isinstance(layer, WindowAttention) else DEFORMABLE_WAYS:
                layer.way = way
                try:
                    results, milliseconds = _try(layer, x, precision, compiled, train)
                except Exception as error:  # whatever a compiler says: there are other ways
                    reason = " ".join(str(error).split())[:200]
                    warn(
                        f"attention: {way} of {name} fails ({type(error).__name__}: {reason}); it is left out"
                    )
                    continue
                if (off := _difference(results, plain)) > tolerance:
                    warn(f"attention: {way} of {name} differs by {off:.1e}; it is left out")
                else:
                    times[way] = milliseconds
            found[name] = times
    return found


def fastest(times: dict[str, dict[str, float]]) -> dict[str, str]:
    """The way of each kind of layer that `measure` found fastest; none where no way is left."""
    return {name: min(found, key=found.get) for name, found in times.items() if found}


def _inputs(model: nn.Module, images: Tensor, precision: Callable[[], object]) -> dict[nn.Module, Tensor]:
    """What the first layer of each kind is given."""
    inputs: dict[nn.Module, Tensor] = {}
    firsts = [group[0] for group in layers(model).values()]
    hooks = [
        layer.register_forward_pre_hook(lambda layer, args: inputs.setdefault(layer, args[0].detach()))
        for layer in firsts
    ]
    try:
        with torch.no_grad(), precision():
            model(images)
    finally:
        for hook in hooks:
            hook.remove()
    return inputs


def _try(layer, x: Tensor, precision, compiled: bool, train: bool) -> tuple[list[Tensor], float]:
    """Output and gradients, and the milliseconds that they take."""
    forward = torch.compile(layer.forward) if compiled else layer.forward
    weights = torch.rand(x.shape, generator=torch.Generator().manual_seed(0)).to(x.device)  # of the outputs
    leaves = [x.clone().requires_grad_(), *(p for p in layer.parameters() if p.requires_grad)]

    def once() -> list[Tensor]:
        with torch.set_grad_enabled(train), precision():
            out = forward(leaves[0])[0]
        if not train:
            return [out]
        return [out.detach(), *torch.autograd.grad(out, leaves, weights.to(out.dtype), allow_unused=True)]

    results = once()
    best = float("inf")
    for _ in range(REPEATS):
        _wait(x.device)
        start = time.perf_counter()
        once()
        _wait(x.device)
        best = min(best, time.perf_counter() - start)
    return results, 1000 * best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _difference(results: list[Tensor | None], plain: list[Tensor | None]) -> float:
    """The largest relative difference of any tensor; infinite where one is not finite.

    A gradient of next to nothing, as that of the keys' bias, which softmax cancels, is rounding and compared with nothing.
    """
    if [found is None for found in results] != [right is None for right in plain]:
        return float("inf")
    pairs = [(f.float(), r.float()) for f, r in zip(results, plain, strict=True) if f is not None]
    least = 1e-3 * max(right.norm().item() for _, right in pairs)
    offs = [((found - right).norm() / right.norm().clamp_min(least)).item() for found, right in pairs]
    return float("inf") if any(off != off for off in offs) else max(offs)


@contextmanager
def _undisturbed(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Random numbers, running means, ways and modes are as before, afterwards; nothing waits for other processes."""
    before, synced = ways_of(model), [m for m in model.modules() if getattr(m, "sync", False)]
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices), tracking_nothing():
        for points in synced:
            points.sync = False
        try:
            yield
        finally:
            for points in synced:
                points.sync = True
            set_ways(model, before)
