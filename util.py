"""Losses and metrics."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np
import torch
from scipy import stats
from sklearn.metrics import mean_absolute_error, root_mean_squared_error
from torch import Tensor

METRICS = ("srcc", "plcc", "krcc", "accuracy", "mae", "rmse", "emd_r1", "emd_r2")


def cdf_difference(prediction: Tensor, target: Tensor) -> Tensor:
    """(B, levels), the difference of the cumulative distributions of two vote distributions (B, levels)."""
    return prediction.cumsum(-1) - target.cumsum(-1)


def emd_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """EMD as EAT's release computes it: one square root for the whole batch. (B, levels) each; a scalar.

    Its value is not the mean of the images' EMDs, and depends on which images share the batch.
    """
    return cdf_difference(prediction, target).square().mean().sqrt()


def nima_loss(prediction: Tensor, target: Tensor, r: int) -> Tensor:
    """EMD of each image, averaged over the batch: mean over levels of |CDF difference|^r, to the 1 / r.

    (B, levels) each; r 1 or 2; a scalar. Source: NIMA, Talebi and Milanfar, 2018.
    """
    return image_emd(prediction, target, r).mean()


def image_emd(prediction: Tensor, target: Tensor, r: int) -> Tensor:
    """(B,), each image's EMD. Where r is 2 the root's gradient is kept finite at a perfect prediction."""
    difference = cdf_difference(prediction, target)
    if r == 1:
        return difference.abs().mean(-1)
    return difference.square().mean(-1).clamp_min(torch.finfo(difference.dtype).tiny).sqrt()


def make_loss(name: str) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss of `--loss`: (prediction, target), each (B, outputs), to a scalar."""
    return {
        "emd": emd_loss,
        "nima_r1": lambda prediction, target: nima_loss(prediction, target, 1),
        "nima_r2": lambda prediction, target: nima_loss(prediction, target, 2),
        "mse": torch.nn.functional.mse_loss,
    }[name]


def scores(outputs: np.ndarray) -> np.ndarray:
    """Scores (N,) of outputs or targets (N, levels): the sum of level times output, or a single output as it is.

    The outputs are used raw, without a softmax, as released.
    """
    if outputs.shape[1] == 1:
        return outputs[:, 0]
    return outputs @ np.arange(1, outputs.shape[1] + 1, dtype=outputs.dtype)


@dataclass(frozen=True)
class Pairs:
    """Predicted beside true scores, image by image: all that the metrics need. Every array is (N,) float64.

    predicted, true: on one scale. agree: 1 where both are on the same side of their threshold, else 0; a score at
    the threshold is low. emd_r1, emd_r2: the images' EMDs, nan where there are no two vote distributions.
    """

    predicted: np.ndarray
    true: np.ndarray
    agree: np.ndarray
    emd_r1: np.ndarray
    emd_r2: np.ndarray

    def __len__(self) -> int:
        return len(self.true)

    def subset(self, rows: np.ndarray) -> Pairs:
        return Pairs(*(getattr(self, field.name)[rows] for field in fields(self)))


def pair(
    outputs: np.ndarray, targets: np.ndarray, threshold: float, opinions: np.ndarray | None = None
) -> Pairs:
    """Pairs of raw outputs and targets, (N, levels) or (N, 1) each.

    threshold: scores above it are high. opinions: (N,), the true scores where they are known more exactly than from
    `targets`: a mean of exactly 5 is low, and must not become 5.0000002.
    """
    outputs, targets = outputs.astype(np.float64), targets.astype(np.float64)
    predicted, true = scores(outputs), scores(targets) if opinions is None else opinions
    emds = [np.full(len(true), np.nan)] * 2 if outputs.shape[1] == 1 else image_emds(outputs, targets)
    agree = ((predicted > threshold) == (true > threshold)).astype(np.float64)
    return Pairs(predicted, true, agree, *emds)


def image_emds(outputs: np.ndarray, targets: np.ndarray) -> list[np.ndarray]:
    """Each image's EMD with r = 1 and with r = 2, (N,) each, of float64 (N, levels)."""
    return [image_emd(torch.from_numpy(outputs), torch.from_numpy(targets), r).numpy() for r in (1, 2)]


def compute_metrics(pairs: Pairs) -> dict[str, float]:
    """All of METRICS. Correlations of constant scores are nan, with a warning; the EMDs of single scores are nan."""
    p, t = pairs.predicted, pairs.true
    constant = [name for name, side in (("predicted", p), ("true", t)) if np.ptp(side) == 0]
    if constant:
        warnings.warn(f"all {len(t)} {constant[0]} scores are equal: correlations are nan", stacklevel=2)
    return {
        "srcc": math.nan if constant else float(stats.spearmanr(p, t).statistic),
        "plcc": math.nan if constant else float(stats.pearsonr(p, t).statistic),
        "krcc": math.nan if constant else float(stats.kendalltau(p, t).statistic),
        "accuracy": float(pairs.agree.mean()),
        "mae": float(mean_absolute_error(t, p)),
        "rmse": float(root_mean_squared_error(t, p)),
        "emd_r1": float(pairs.emd_r1.mean()),
        "emd_r2": float(pairs.emd_r2.mean()),
    }
