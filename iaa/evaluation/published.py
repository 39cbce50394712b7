"""Published figures, and what the release does in its own way: which checkpoints it keeps, how it computes accuracy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

REPORTED = ("srcc", "plcc", "accuracy")
CHECKPOINTS = "from the names of the released checkpoints, 2023"
LATER = "as later papers report EAT"
# By dataset and split: the source, and the figures of each network in the order of REPORTED. `EAT` is the authors' own.
# FLICKR-AES: none that can be cited.
PUBLISHED: dict[tuple[str, str], tuple[str, dict[str, tuple[float, ...]]]] = {
    ("ava", "authors"): (CHECKPOINTS, {"EAT": (0.7596, 0.7710, 0.8259)}),
    ("tad66k", "official"): (CHECKPOINTS, {"EAT": (0.5171, 0.5460, 0.6882)}),
    ("aadb", "official"): (LATER, {"EAT": (0.759, 0.767)}),
    ("para", "official"): (LATER, {"EAT": (0.909, 0.940)}),
    ("ava", "official"): (
        "as tabled by pyiqa, 2026",
        {
            "Q-Align": (0.822, 0.819),
            "TOPIQ swin-B": (0.791, 0.790),
            "TOPIQ ResNet-50": (0.736, 0.737),
            "NIMA": (0.713, 0.717),
            "LAION": (0.665, 0.666),
        },
    ),
    ("csv", "BIQ2021 official"): (
        "the database's own table, of networks that start from ImageNet; Ahmed and Asif, 2022",
        {
            "DeepEns": (0.792, 0.810),
            "NASNet-Large": (0.673, 0.708),
            "ResNet-50": (0.647, 0.686),
            "MobileNet-V2": (0.619, 0.661),
            "VGG16": (0.600, 0.642),
        },
    ),
}
AVA_ABOVE = 0.75  # a kept checkpoint has a higher SRCC or PLCC
TAD66K_ABOVE = 0.48  # a kept checkpoint has a higher SRCC


def compare_published(
    dataset: str, split: str, intervals: Mapping[str, tuple[float, float]]
) -> tuple[str, dict[str, dict]]:
    """The source of the published figures of a split, and the figures by network and metric.

    A figure is its `value` and its `place`, see `find_place`. The `unknown` split counts as that of EAT's own figures.
    """
    if split == "unknown":
        split = "authors" if dataset == "ava" else "official"
    source, networks = PUBLISHED.get((dataset, split), ("", {}))
    compared = {}
    for network, values in networks.items():
        figures = zip(REPORTED, values, strict=False)
        compared[network] = {
            name: {"value": value, "place": find_place(value, *intervals[name])} for name, value in figures
        }
    return source, compared


def find_place(value: float, low: float, high: float) -> str:
    """Where a figure lies: inside, below or above an interval; empty if too few images leave it without width, or nan."""
    if not low < high:
        return ""
    return "below" if value < low else "above" if value > high else "inside"


def exceeds_published(dataset: str, split: str, intervals: Mapping[str, tuple[float, float]]) -> bool:
    """Whether SRCC or PLCC exceed all figures of the split; where it has none, EAT's own of the dataset."""
    networks = compare_published(dataset, split, intervals)[1]
    networks = networks or compare_published(dataset, "unknown", intervals)[1]
    places = [[figures[name]["place"] for figures in networks.values()] for name in REPORTED[:2]]
    return any(set(of_metric) == {"below"} for of_metric in places)


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
