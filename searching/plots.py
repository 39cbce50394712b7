"""Pictures of a search: every trial's curve, and each hyperparameter against the metric."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from commands.files import atomic_write
from searching.trial import metric
from searching.trials import Trial

COLOURS = "viridis"


def draw(trials: list[Trial], name: str, title: str, path: Path) -> None:
    """Curves of all trials, coloured by their metric, and a panel per hyperparameter, to a PNG."""
    shown = [trial for trial in trials if not math.isnan(trial.value)]
    parameters = list(dict.fromkeys(key for trial in shown for key in trial.parameters))
    columns = min(3, 1 + len(parameters))
    rows = -(-(1 + len(parameters)) // columns)
    figure = Figure(figsize=(5 * columns, 3.8 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    values = np.array([trial.value for trial in shown])
    spread = Normalize(values.min(), values.max() if np.ptp(values) else values.min() + 1e-9)
    colours = colormaps[COLOURS](spread(values))
    for trial, colour in reversed(list(zip(shown, colours, strict=True))):
        curve = [metric(row, name) for row in trial.history.to_dict("records")]
        panels[0].plot(trial.history["epoch"], curve, marker="o", markersize=3, color=colour)
        if trial.best_epoch:
            panels[0].plot(trial.best_epoch, trial.value, marker="o", markersize=7, color=colour, mec="black")
    panels[0].set(title="every trial; ringed: the selected epoch", xlabel="epoch", ylabel=name)
    panels[0].xaxis.get_major_locator().set_params(integer=True)
    panels[0].grid(alpha=0.3)
    for panel, key in zip(panels[1:], parameters, strict=False):
        _scatter(panel, [trial.parameters.get(key) for trial in shown], values, colours)
        panel.set(title=key, ylabel=name)
        panel.grid(alpha=0.3)
    for panel in panels[1 + len(parameters) :]:
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
