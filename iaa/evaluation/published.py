"""Published figures, and what the release does in its own way: which checkpoints it keeps, how it computes accuracy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

# AVA and TAD66K: from the names of the released checkpoints. AADB and PARA: as later papers report EAT, without an
# accuracy. FLICKR-AES: none that can be cited.
PUBLISHED = {
    "ava": {"srcc": 0.7596, "plcc": 0.7710, "accuracy": 0.8259},
    "tad66k": {"srcc": 0.5171, "plcc": 0.5460, "accuracy": 0.6882},
    "aadb": {"srcc": 0.759, "plcc": 0.767},
    "para": {"srcc": 0.909, "plcc": 0.940},
}
AVA_ABOVE = 0.75  # a kept checkpoint has a higher SRCC or PLCC
TAD66K_ABOVE = 0.48  # a kept checkpoint has a higher SRCC


def compare_published(dataset: str, intervals: Mapping[str, tuple[float, float]]) -> dict[str, dict]:
    """By metric, the published figure of a dataset, `value`, and its `place`: inside, below or above the interval.

    A place is empty if the interval has no width: there are too few images.
    """
    figures = {}
    for name, value in PUBLISHED.get(dataset, {}).items():
        low, high = intervals[name]
        place = "below" if value < low else "above" if value > high else "inside"
        figures[name] = {"value": value, "place": place if low < high else ""}  # nan is not below anything
    return figures


def released_accuracy(outputs: np.ndarray, targets: np.ndarray, threshold: float) -> float:
    """Accuracy as the release computes it, from scores that are summed in float32. outputs, targets: (N, levels).

    A mean opinion of exactly 5 may become 5.0000002, which is above the threshold.
    """
    levels = np.arange(1, outputs.shape[1] + 1, dtype=np.float32)
    predicted, true = ((values.astype(np.float32) * levels).sum(1) for values in (outputs, targets))
    return float(np.mean((predicted > threshold) == (true > threshold)))


def keeps(dataset: str, history: Sequence[Mapping[str, float]]) -> bool:
    """Whether the release keeps a checkpoint of the last epoch. history: rows of metrics.csv.

    AVA: every epoch whose SRCC or PLCC on test.csv exceeds 0.75. TAD66K: every epoch whose SRCC exceeds 0.48 and whose
    SRCC or accuracy is the best so far.
    """
    row, before = history[-1], history[:-1]
    if dataset == "ava":
        return max(row["val_srcc"], row["val_plcc"]) > AVA_ABOVE
    best = {name: max((past[name] for past in before), default=0) for name in ("val_srcc", "val_accuracy")}
    return row["val_srcc"] > TAD66K_ABOVE and any(row[name] > value for name, value in best.items())


def checkpoint_name(dataset: str, row: Mapping[str, float]) -> str:
    """The file name of a checkpoint, made of its metrics as in the release. row: of metrics.csv."""
    accuracy, srcc, plcc = (row[f"val_{name}"] for name in ("accuracy", "srcc", "plcc"))
    return f"{dataset.upper()}_AOT_vacc_{accuracy:.4f}_srcc_{srcc:.4f}_vlcc_{plcc:.4f}.pth"
