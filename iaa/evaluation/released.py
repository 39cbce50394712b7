"""The release's rule for checkpoints and their names, for `--released_protocol`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

AVA_ABOVE = 0.75  # SRCC or PLCC must be higher
TAD66K_ABOVE = 0.48  # SRCC must be higher


def keeps(dataset: str, history: Sequence[Mapping[str, float]]) -> bool:
    """Whether the release keeps a checkpoint of the last epoch. history: rows of metrics.csv.

    AVA: every epoch whose SRCC or PLCC on test.csv exceeds 0.75. TAD66K: every epoch whose SRCC exceeds 0.48 and whose
    SRCC or accuracy is the best so far.
    """
    row, before = history[-1], history[:-1]
    if dataset == "ava":
        return max(row["val_srcc"], row["val_plcc"]) > AVA_ABOVE
    better = any(
        row[name] > max((past[name] for past in before), default=0) for name in ("val_srcc", "val_accuracy")
    )
    return better and row["val_srcc"] > TAD66K_ABOVE


def checkpoint_name(dataset: str, row: Mapping[str, float]) -> str:
    """The file name of a checkpoint, made of its metrics as in the release. row: of metrics.csv."""
    accuracy, srcc, plcc = (row[f"val_{name}"] for name in ("accuracy", "srcc", "plcc"))
    return f"{dataset.upper()}_AOT_vacc_{accuracy:.4f}_srcc_{srcc:.4f}_vlcc_{plcc:.4f}.pth"
