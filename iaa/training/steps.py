"""From a loss to new weights: schedules, precision, optimisers, and the step that brings them together."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass
from itertools import chain

import torch
from timm.optim import param_groups_layer_decay
from torch import Tensor, nn

import models
from models.attention import make_deterministic

log = logging.getLogger("eat")


@dataclass(frozen=True)
class Schedule:
    """The learning rate over training time, in epochs (fractions count); cosine falls to 0 at the end."""

    init_lr: float
    num_epoch: int
    kind: str = "constant"
    decay_every: int = 5
    decay_factor: float = 0.1
    warmup_epochs: float = 0.0

    def __call__(self, epochs: float) -> float:
        if epochs < self.warmup_epochs:
            return self.init_lr * epochs / self.warmup_epochs
        if self.kind == "step":
            return self.init_lr * self.decay_factor ** (int(epochs) // self.decay_every)
        if self.kind == "cosine":
            share = (epochs - self.warmup_epochs) / max(self.num_epoch - self.warmup_epochs, 1e-9)
            return self.init_lr * 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))
        return self.init_lr


@dataclass(frozen=True)
class Precision:
    """The number format of a network's matrix products; its weights, its coordinates and the loss stay float32."""

    device: torch.device
    dtype: torch.dtype | None = None  # None: float32 throughout

    def __call__(self):
        """The context to run the network in."""
        return torch.autocast(self.device.type, self.dtype) if self.dtype else nullcontext()


def make_optimizer(
    model: nn.Module, name: str, weight_decay: float, layer_decay: float | None = None
) -> torch.optim.Optimizer:
    """Adam or AdamW, fused. AdamW's decay spares biases, norms and position tables; Adam's is plain L2 on all, as ever.

    layer_decay: groups of parameters have an `lr_scale`: 1 in the head, and from each layer to the one before it this
    factor. The network must have timm's `group_matcher`.
    """
    spares = name == "adamw"
    if layer_decay is not None:
        spared = getattr(model, "no_weight_decay", set)() if spares else ()
        settings = {"no_weight_decay_list": spared, "weight_decay_exclude_1d": spares}
        groups = param_groups_layer_decay(model, weight_decay, **settings, layer_decay=layer_decay)
        return {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[name](groups, fused=True)
    if not spares:
        return torch.optim.Adam(model.parameters(), weight_decay=weight_decay, fused=True)
    spared, decayed, rest = getattr(model, "no_weight_decay", set)(), [], []
    for parameter_name, parameter in model.named_parameters():
        (rest if parameter.ndim < 2 or parameter_name in spared else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, fused=True)


@dataclass(eq=False)
class Stepper:
    """From a loss to new weights: scaling, gradients, accumulation, clipping, the optimiser, the weights' moving average.

    optimizer: must be fused. accumulate: batches per step; their gradients are averaged. precision: gradients are scaled
    in fp16 only. unsynced: a context in which processes do not exchange gradients, for all but a step's last batch.
    ema_decay: share of the moving average that a step keeps; None: no average. Statistics of batch normalisation are
    averaged, too; the factors of the refinement follow their schedule.
    A step whose gradient is not finite changes nothing; the device decides that, without a wait.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    precision: Precision
    accumulate: int = 1
    clip_grad: float | None = None
    refinement: models.RefinementSchedule | None = None
    unsynced: Callable = nullcontext
    ema_decay: float | None = None

    def __post_init__(self):
        half = self.precision.dtype == torch.float16
        self.scaler = torch.amp.GradScaler(self.precision.device.type, enabled=half)
        self.left_out: Tensor | None = None  # whether the last step was skipped; a bool on the device
        self.batches_of_step = 1
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.ema: nn.Module | None = None
        self.networks = [self.model]
        if self.ema_decay is not None:
            self.ema = deepcopy(self.model).requires_grad_(False).eval()
            self.networks.append(self.ema)

    @property
    def evaluated(self) -> nn.Module:
        """The network that is validated and becomes best.pth: the average, if there is one."""
        return self.networks[-1]

    def begin(self, now: float, batches_of_step: int = 1) -> None:
        """Before a batch's forward pass. now: epochs done, fractions count. batches_of_step: see `shares`."""
        self.batches_of_step = batches_of_step
        if self.refinement is not None:
            for network in self.networks:
                models.set_refinement(network, self.refinement(now / self.schedule.num_epoch))

    def shares(self, batch: int, batches: int) -> tuple[int, bool]:
        """How many batches share the step of batch number `batch` of an epoch, and whether it is the last of them."""
        index = batch % self.accumulate
        batches_of_step = min(self.accumulate, batches - batch + index)
        return batches_of_step, index == batches_of_step - 1

    def backward(self, loss: Tensor) -> None:
        """Add a batch's share to the gradients."""
        self.scaler.scale(loss / self.batches_of_step).backward()

    def update(self, now: float) -> None:
        """Make a step of the accumulated gradients, and clear them. now: epochs done, fractions count."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule(now) * group.get("lr_scale", 1.0)
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.parameters, self.clip_grad or math.inf)
        is_bad = ~norm.isfinite()
        if self.scaler.is_enabled():  # it skips steps to find its scale: no reason to warn
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:  # the way in which a GradScaler makes a fused optimiser skip its step
            self.left_out = is_bad
            self.optimizer.found_inf = self.left_out.float()
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema is not None:
            self._average((1 - self.ema_decay) * ~is_bad)

    @torch.no_grad()
    def _average(self, share: Tensor) -> None:
        """Move the average by this share of the way, a scalar, to the weights."""
        tensors = (chain(network.parameters(), network.buffers()) for network in self.networks)
        for value, averaged in zip(*tensors, strict=True):
            if averaged.is_floating_point():
                averaged.lerp_(value, share)
            else:
                averaged.copy_(value)


def allow_tf32(allowed: bool) -> None:
    """Allow or forbid TF32 in float32 products and convolutions on a GPU. torch's default allows it in convolutions."""
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    torch.backends.cudnn.allow_tf32 = allowed


def set_deterministic(deterministic: bool, model: nn.Module, device: torch.device) -> None:
    """Have torch and `model` use deterministic operations only, or any. On a CPU all of them are deterministic."""
    torch.use_deterministic_algorithms(deterministic)
    torch.utils.deterministic.fill_uninitialized_memory = False  # nothing here reads such memory
    if deterministic and device.type != "cuda":
        log.info("--deterministic changes nothing on %s: training on it is deterministic anyway", device)
    elif deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it at its first product
        make_deterministic(model)
