"""The picture of a search: the curve of every trial, and each hyperparameter against the metric."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from iaa.errors import InputError
from iaa.runtime.files import atomic_write
from iaa.searching.results import TrialResult


def plot_results(results: list[TrialResult], metric_name: str, title: str, path: Path) -> None:
    """Write a PNG: curves of all trials, coloured by their value, and a panel per hyperparameter.

    Raises InputError if there is no curve yet.
    """
    shown = [result for result in results if result.curve]
    if not shown:
        raise InputError("no trial has finished an epoch yet")
    names = list(dict.fromkeys(name for result in shown for name in result.parameters))
    columns = min(3, 1 + len(names))
    rows = -(-(1 + len(names)) // columns)
    figure = Figure(figsize=(5 * columns, 3.8 * rows), layout="constrained")
    values = np.array([result.value for result in shown])
    colours = colormaps["viridis"](Normalize()(values))
    panel = figure.add_subplot(rows, columns, 1)
    for result, colour in reversed(list(zip(shown, colours, strict=True))):
        panel.plot(*zip(*result.curve.items(), strict=True), marker="o", markersize=3, color=colour)
        panel.plot(result.best_epoch, result.value, marker="o", markersize=7, color=colour, mec="black")
    panel.set(title="every trial; ringed: the selected epoch", xlabel="epoch", ylabel=metric_name)
    panel.xaxis.get_major_locator().set_params(integer=True)
    panel.grid(alpha=0.3)
    for number, name in enumerate(names, 2):
        panel = figure.add_subplot(rows, columns, number)
        settings = [result.parameters.get(name) for result in shown]
        if all(type(setting) in (int, float) for setting in settings):
            if 0 < 20 * min(settings) <= max(settings):
                panel.set_xscale("log")
        else:
            settings = [str(setting) for setting in settings]
            panel.xaxis.update_units(sorted(set(settings)))
        panel.scatter(settings, values, c=colours, edgecolors="black", linewidths=0.5)
        panel.set(title=name, ylabel=metric_name)
        panel.grid(alpha=0.3)
    figure.suptitle(title)
    with atomic_write(path, "wb") as file:
        figure.savefig(file, format="png", dpi=110)
