"""How a run computes attention: as it was asked to, or by the fastest way of its machine, measured on its first batch."""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from commands import distributed
from option import InputError
from training.steps import Precision

log = logging.getLogger("eat")

Chooser = Callable[[Tensor], dict[str, str]]


def prepare(options: argparse.Namespace, model: nn.Module, device: torch.device) -> None:
    """Set what needs no measuring. Raises InputError for `--attention dense` where no layer is deformable."""
    deterministic = options.deterministic and device.type == "cuda"
    if deterministic:  # cuBLAS reads it at its first product
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(options.deterministic)
    torch.utils.deterministic.fill_uninitialized_memory = False  # nothing here reads such memory
    if options.attention is None:  # a network of timm
        return
    from models import ways  # here: a network of timm's needs none of EAT's parts

    if options.attention == "dense" or deterministic:
        try:
            ways.set_ways(model, "dense")
        except ValueError as error:
            raise InputError(f"--attention dense: {error}; leave it out") from None
    if deterministic:
        ways.set_ways(model, {name: "explicit" for name in ways.layers(model) if name[0] != "D"})
    elif options.deterministic:
        log.info("--deterministic changes nothing on %s: there training is so anyway", device)


def chooser(
    options: argparse.Namespace, model: nn.Module, precision: Precision, known: Mapping[str, str]
) -> Chooser | None:
    """What is to be done with the first batch of normalised images; None where there is nothing to choose.

    known: the ways of the run that is resumed. Returns of it: the ways that the run has from then on.
    """
    if precision.device.type != "cuda" or options.released_protocol or options.attention is None:
        return None
    from models import ways

    if known:
        ways.set_ways(model, dict(known))
        return None
    if options.attention != "auto" and not options.deterministic:
        return None

    def choose(images: Tensor) -> dict[str, str]:
        tolerance = ways.ROUNDED if precision.dtype or options.tf32 else ways.EXACT
        torch.use_deterministic_algorithms(False)  # ways that are not so are only timed
        times = ways.measure(model, images, precision, tolerance, options.compile, warn=_warn)
        torch.use_deterministic_algorithms(options.deterministic)
        chosen = distributed.gather(ways.fastest(times))[0]
        if options.deterministic:
            log.info("--deterministic: %s", cost(model, times, chosen))
        else:
            ways.set_ways(model, chosen)
            log.info("attention by the fastest way, marked *, in ms: %s", describe(times, chosen))
        return ways.ways_of(model)

    return choose


def _warn(line: str) -> None:
    log.warning("warning: %s", line)


def describe(times: Mapping[str, Mapping[str, float]], chosen: Mapping[str, str]) -> str:
    """What was measured, in one line."""
    parts = []
    for name, found in times.items():
        shown = [f"{way}{'*' if chosen.get(name) == way else ''} {ms:.2f}" for way, ms in found.items()]
        parts.append(f"{name}: {', '.join(shown)}")
    return "; ".join(parts)


def cost(model: nn.Module, times: Mapping[str, Mapping[str, float]], chosen: Mapping[str, str]) -> str:
    """What the ways of `model` cost in a step beside the fastest ones."""
    from models import ways

    own = fastest = 0.0
    for name, group in ways.layers(model).items():
        if group[0].way in times[name]:
            own += len(group) * times[name][group[0].way]
            fastest += len(group) * times[name][chosen[name]]
    return f"attention takes {own:.1f} ms of a step, instead of {fastest:.1f} ms by the fastest ways"
