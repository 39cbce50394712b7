"""What the release keeps and reports of a training run, which `--released_protocol` does, too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

AVA_ABOVE = 0.75  # SRCC or PLCC of an epoch that is kept
TAD66K_ABOVE = 0.48  # SRCC of one that is kept for being the best yet


def keeps(dataset: str, history: Sequence[Mapping[str, float]]) -> bool:
    """Whether the release would keep a checkpoint of the last epoch of `history`, rows of metrics.csv.

    AVA: each whose SRCC or PLCC on test.csv exceeds 0.75. TAD66K: each whose SRCC or accuracy is the best yet and whose
    SRCC exceeds 0.48.
    """
    row, before = history[-1], history[:-1]
    if dataset == "ava":
        return max(row["val_srcc"], row["val_plcc"]) > AVA_ABOVE
    better = any(
        row[name] > max((past[name] for past in before), default=0) for name in ("val_srcc", "val_accuracy")
    )
    return better and row["val_srcc"] > TAD66K_ABOVE


def checkpoint_name(dataset: str, row: Mapping[str, float]) -> str:
    """The name of such a checkpoint, made of its metrics as the released ones' are."""
    accuracy, srcc, plcc = (row[f"val_{name}"] for name in ("accuracy", "srcc", "plcc"))
    return f"{dataset.upper()}_AOT_vacc_{accuracy:.4f}_srcc_{srcc:.4f}_vlcc_{plcc:.4f}.pth"
