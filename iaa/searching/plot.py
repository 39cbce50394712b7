"""The picture of a search: the curve of every trial, and each hyperparameter against the metric."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from iaa.runtime.files import atomic_write
from iaa.searching.results import TrialResult


def plot_results(results: list[TrialResult], metric_name: str, title: str, path: Path) -> None:
    """Write a PNG: curves of all trials, coloured by their value, and a panel per hyperparameter."""
    shown = [result for result in results if not math.isnan(result.value)]
    names = list(dict.fromkeys(name for result in shown for name in result.parameters))
    columns = min(3, 1 + len(names))
    rows = -(-(1 + len(names)) // columns)
    figure = Figure(figsize=(5 * columns, 3.8 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    values = np.array([result.value for result in shown])
    colours = colormaps["viridis"](Normalize()(values))
    for result, colour in reversed(list(zip(shown, colours, strict=True))):
        panels[0].plot(*zip(*result.curve.items(), strict=True), marker="o", markersize=3, color=colour)
        selected = result.best_epoch, result.value
        panels[0].plot(*selected, marker="o", markersize=7, color=colour, mec="black")
    panels[0].set(title="every trial; ringed: the selected epoch", xlabel="epoch", ylabel=metric_name)
    panels[0].xaxis.get_major_locator().set_params(integer=True)
    for panel, name in zip(panels[1:], names, strict=False):
        settings = [result.parameters.get(name) for result in shown]
        if all(type(setting) in (int, float) for setting in settings):
            if 0 < 20 * min(settings) <= max(settings):
                panel.set_xscale("log")
        else:
            settings = [str(setting) for setting in settings]
            panel.xaxis.update_units(sorted(set(settings)))
        panel.scatter(settings, values, c=colours, edgecolors="black", linewidths=0.5)
        panel.set(title=name, ylabel=metric_name)
    for panel in panels[: 1 + len(names)]:
        panel.grid(alpha=0.3)
    for panel in panels[1 + len(names) :]:
        panel.set_visible(False)
    figure.suptitle(title)
    with atomic_write(path, "wb") as file:
        figure.savefig(file, format="png", dpi=110)
