"""The picture of a search: the curve of every trial, and each hyperparameter against the metric."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from iaa.runtime.files import atomic_write
from iaa.searching.nni_trial import read_metric
from iaa.searching.results import TrialResult


def plot_results(results: list[TrialResult], metric_name: str, title: str, path: Path) -> None:
    """Write a PNG: curves of all trials, coloured by their value, and a panel per hyperparameter."""
    shown = [result for result in results if not math.isnan(result.value)]
    names = list(dict.fromkeys(key for result in shown for key in result.parameters))
    columns = min(3, 1 + len(names))
    rows = -(-(1 + len(names)) // columns)
    figure = Figure(figsize=(5 * columns, 3.8 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    values = np.array([result.value for result in shown])
    scale = Normalize(values.min(), values.max() if np.ptp(values) else values.min() + 1e-9)
    colours = colormaps["viridis"](scale(values))
    for result, colour in reversed(list(zip(shown, colours, strict=True))):
        epochs = [row["epoch"] for row in result.history]
        curve = [read_metric(row, metric_name) for row in result.history]
        panels[0].plot(epochs, curve, marker="o", markersize=3, color=colour)
        if result.best_epoch:
            panels[0].plot(
                result.best_epoch, result.value, marker="o", markersize=7, color=colour, mec="black"
            )
    panels[0].set(title="every trial; ringed: the selected epoch", xlabel="epoch", ylabel=metric_name)
    panels[0].xaxis.get_major_locator().set_params(integer=True)
    panels[0].grid(alpha=0.3)
    for panel, name in zip(panels[1:], names, strict=False):
        _scatter(panel, [result.parameters.get(name) for result in shown], values, colours)
        panel.set(title=name, ylabel=metric_name)
        panel.grid(alpha=0.3)
    for panel in panels[1 + len(names) :]:
        panel.set_visible(False)
    figure.suptitle(title)
    with atomic_write(path, "wb") as file:
        figure.savefig(file, format="png", dpi=110)


def _scatter(panel, settings: list, values: np.ndarray, colours: np.ndarray) -> None:
    numbers = all(isinstance(setting, (int, float)) and not isinstance(setting, bool) for setting in settings)
    if not numbers:
        settings = [str(setting) for setting in settings]
        panel.xaxis.update_units(sorted(set(settings)))
        panel.set_xlim(-0.5, len(set(settings)) - 0.5)
    panel.scatter(settings, values, c=colours, edgecolors="black", linewidths=0.5)
    if numbers and min(settings) > 0 and max(settings) >= 20 * min(settings):
        panel.set_xscale("log")
