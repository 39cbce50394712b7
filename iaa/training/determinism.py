"""Training on a GPU that gives the same weights each time."""

from __future__ import annotations

import logging
import os

import torch
from torch import nn

from models.attention import make_deterministic

log = logging.getLogger("eat")


def set_deterministic(deterministic: bool, model: nn.Module, device: torch.device) -> None:
    """Have torch and `model` use deterministic operations only, or any. On a CPU all of them are deterministic."""
    torch.use_deterministic_algorithms(deterministic)
    torch.utils.deterministic.fill_uninitialized_memory = False  # nothing here reads such memory
    if not deterministic:
        return
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it at its first product
        make_deterministic(model)
    else:
        log.info("--deterministic changes nothing on %s: training on it is deterministic anyway", device)
