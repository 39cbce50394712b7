"""An ablation of interest points and offset refinement: every setting is trained with every seed, measured and compared.

    python -m benchmarks.ablation --out runs/ablation
    python -m benchmarks.ablation --preset paper --models timm/resnet18 "timm/resnet50,path_to_model_weight=FILE"
    python -m benchmarks.ablation --settings batch image "interest_points=image,refinement=off" --seeds 0 1 \
        --out runs/tad66k -- --dataset tad66k --path_to_images IMAGES --path_to_save_csv CSVS

Options after `--` go to main_nni.py, for every run. If it is interrupted, the same command goes on. `--out` gets a folder for
each run, runs.csv (a row per run), table.csv, table.md, ablation.png, and differences.md, which says which settings differ
by more than the noise of seeds and images.

Intervals (95 %) are of the mean, over seeds and images. GFLOP are of one image's forward pass (2 per multiply-add). Images/s
are of steps with the run's batch size and precision, on images in memory, without the loader.

For the batch spread every test image is scored in batches of 1, 4 and 16, in the CSV's order and in a shuffled one. Its
spread is its highest score less its lowest.
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from torch import nn
from tqdm import tqdm

import option
from benchmarks import throughput
from dataset import Transform, make_loader, read_splits
from iaa.errors import InputError, Interrupted, TrainingError
from iaa.evaluation import comparison, test_metrics
from iaa.runtime.command_line import Parser
from iaa.runtime.files import atomic_write, read_json_object, write_json
from iaa.runtime.program import run_command
from iaa.training import engine
from iaa.training.build import make_model, pick_device, pick_format, pick_precisions
from iaa.training.checkpoint import LAST, PREVIOUS
from iaa.training.steps import Precision, allow_tf32
from models import read_weights
from models.purpose import Purpose
from option import Option
from util import make_loss, scores

SETTINGS = {
    "batch": {"interest_points": "batch", "refinement": "released"},
    "image": {"interest_points": "image", "refinement": "released"},
    "off": {"interest_points": "batch", "refinement": "off"},
    "scheduled": {"interest_points": "batch", "refinement": "scheduled"},
    "dat": {"interest_points": "grid", "refinement": "off"},
}
SETTINGS |= {"points": SETTINGS["off"], "eat": SETTINGS["batch"]}  # the paper's names
PRESETS = {
    "ours": ["batch", "image", "off", "scheduled"],
    # Plain DAT, then the paper's two ideas one after the other; then our variants of both.
    "paper": ["dat", "points", "eat", "image", "scheduled"],
}
BATCH_SIZES = (1, 4, 16)
METRICS = {"srcc": "SRCC", "plcc": "PLCC", "accuracy": "accuracy"}
COSTS = {
    "parameters": "parameters, M",
    "gflop": "GFLOP",
    "training_speed": "images/s, training",
    "evaluation_speed": "images/s, evaluation",
}
SPREADS = {"spread_mean": "batch spread, mean", "spread_max": "batch spread, largest"}
ROOT = Path(__file__).parent.parent


# fmt: off
TABLE = (
    Option("settings", str, None, f"{', '.join(SETTINGS)}, or option=value,option=value (default: the preset's)", metavar="SETTING", nargs="+"),
    Option("preset", str, "ours", f"ours: {', '.join(PRESETS['ours'])}; paper: {', '.join(PRESETS['paper'])}, that is plain DAT, DAT with interest points, EAT as released, and our variants", choices=tuple(PRESETS)),
    Option("models", str, [], "other networks to train: a --model of main_nni.py, then options for it after commas: timm/NAME,path_to_model_weight=FILE", metavar="MODEL", nargs="+"),
    Option("seeds", int, [0, 1, 2], "seeds; each setting is trained once with each (default: 0 1 2)", nargs="+"),
    Option("out", Path, Path("runs/ablation"), "folder of the runs and tables", metavar="FOLDER"),
    Option("common", str, [], "options of main_nni.py for all runs", metavar="-- OPTION", nargs="*", positional=True),
)
# fmt: on


def main(argv: list[str] | None = None) -> int:
    """Train the missing runs, measure them, and write the tables. Returns the exit status, as main_nni.py's."""
    parser = Parser(
        {"": TABLE},
        prog="python -m benchmarks.ablation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options = parser.parse_args(argv)

    def work() -> None:
        texts = options.settings or PRESETS[options.preset]
        settings = [parse_setting(text) for text in [*texts, *(f"model={text}" for text in options.models)]]
        runs = pd.DataFrame(run_all(settings, options.seeds, options.out, options.common))
        predictions = read_predictions(runs, options.out)
        write_tables(runs, predictions, options.out)
        write_differences(predictions, options.out)
        for name in ("table.md", "differences.md"):
            print((options.out / name).read_text(encoding="utf-8"))

    return run_command("ablation", work, "the same command goes on")


def parse_setting(text: str) -> tuple[str, dict[str, str]]:
    """The name and the options of main_nni.py of a setting in `--settings`, or of `model=...`. Raises InputError."""
    if text in SETTINGS:
        return text, SETTINGS[text]
    options = dict(part.split("=", 1) for part in text.split(",") if "=" in part)
    if len(options) != len(text.split(",")) or not options.keys() <= option.OPTIONS.keys():
        raise InputError(
            f"--settings {text}: neither one of {', '.join(SETTINGS)} nor option=value,option=value"
        )
    return text.removeprefix("model=").replace("/", "_"), options


def run_all(settings: list, seeds: list[int], out: Path, common: list[str]) -> list[dict]:
    """A row of results for each setting and seed. Raises InputError, TrainingError.

    settings: names and options, from `parse_setting`. common: words of the command line for all runs.
    """
    rows = []
    cases = [(name, options, seed) for name, options in settings for seed in seeds]
    bar = tqdm(cases, "ablation", unit="run", disable=None)
    for name, options, seed in bar:
        bar.set_postfix_str(f"{name}, seed {seed}")
        words = [*common, "--seed", str(seed)]
        for key, value in options.items():
            words += [f"--{key}"] if option.OPTIONS[key].type is bool else [f"--{key}", value]
        row = {"setting": name, **options, "seed": seed}
        row |= run_one(out / f"{name}-seed{seed}", words)
        rows.append(row | measure_costs(out / f"{name}-seed{seeds[0]}"))
    return rows


def measure_costs(folder: Path) -> dict[str, float]:
    """COSTS of the network of the run in `folder`, measured once; speeds are medians of five steps of the run's batch."""
    if costs := read_json_object(folder / "cost.json"):
        return costs
    options = argparse.Namespace(**read_json_object(folder / "options.json"))
    device = pick_device(options.gpu_id)

    def build() -> nn.Module:
        return make_model(options, None, Purpose(), 10, device)  # ten outputs, whatever the data

    network = build()
    costs = {"parameters": sum(p.numel() for p in network.parameters()) / 1e6}
    costs["gflop"] = throughput.count_forward_gflop(network)
    for training, column in ((True, "training_speed"), (False, "evaluation_speed")):
        exact = options.eval or options.released_protocol
        dtype = pick_precisions(options.amp, exact, device)[not training].dtype
        batch = options.batch_size if training else options.eval_batch_size
        step = throughput.Step(build(), batch, dtype, training, device, options.compile)
        (rates,) = throughput.measure_in_turn([step], 5, 1)
        costs[column] = statistics.median(rates)
    write_json(folder / "cost.json", costs)
    return costs


def run_one(folder: Path, words: list[str]) -> dict[str, float]:
    """The metrics and the batch spread of a run in `folder`, which is trained, resumed or already finished.

    words: options of main_nni.py. Raises InputError where the folder holds a run with other options.
    """
    earlier_words = read_json_object(folder / "command.json").get("options", words)
    if earlier_words != words:
        raise InputError(
            f"{folder}: a run with {' '.join(earlier_words)}, not {' '.join(words)}; give another --out"
        )
    if row := read_json_object(folder / "result.json"):
        return row
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "command.json", {"options": words})
    saved = any((folder / "checkpoints" / name).is_file() for name in (LAST, PREVIOUS))
    result = train(folder, ["--resume"] if saved else ["--overwrite", *words])
    row = {name: result[name] for name in (*METRICS, "best_epoch", "seconds")} | measure_batch_spread(folder)
    write_json(folder / "result.json", row)
    return row


def train(folder: Path, words: list[str]) -> dict:
    """Run main_nni.py, and return its result. Raises TrainingError, Interrupted."""
    command = [sys.executable, str(ROOT / "main_nni.py"), "--experiment_dir_name", str(folder), *words]
    with open(folder / "train.log", "a+", encoding="utf-8") as log:
        # A session of its own: Ctrl-C reaches only this process, which then asks the run to save and end.
        pipe = subprocess.PIPE
        process = subprocess.Popen(command, stdout=pipe, stderr=log, text=True, start_new_session=True)
        try:
            out, _ = process.communicate()
        except BaseException:
            process.terminate()
            process.wait()
            raise
        if process.returncode in (130, 143):
            raise Interrupted(process.returncode - 128)
        if process.returncode:
            log.seek(0)
            raise TrainingError(f"a run failed: {' '.join(command)}; {' '.join(log.readlines()[-1:])}")
    return json.loads(out.splitlines()[-1])


def measure_batch_spread(folder: Path) -> dict[str, float]:
    """The mean and the largest batch spread over the test images of the run in `folder`."""
    options = argparse.Namespace(**read_json_object(folder / "options.json"))
    device, scale = pick_device(options.gpu_id), (options.score_min, options.score_max)
    form = pick_format(options.dataset, Path(options.path_to_save_csv), False, scale, options.threshold)
    weights = read_weights(folder / "checkpoints" / "best.pth")
    model = make_model(options, weights, weights.purpose, form.outputs, device)
    labels = read_splits(
        options.path_to_save_csv,
        options.path_to_images,
        form,
        train=False,
        skip_missing=options.skip_missing,
        limit=options.limit,
    ).test
    transform = Transform(form, model.img_size, train=False)
    allow_tf32(False)
    predicted = []
    for order in (np.arange(len(labels)), np.random.default_rng(0).permutation(len(labels))):
        for size in BATCH_SIZES:
            loader = make_loader(
                labels.subset(order), options.path_to_images, transform, size, options.num_workers
            )
            evaluation = engine.evaluate(model, loader, make_loss(options.loss), form, Precision(device))
            predicted.append(scores(evaluation.outputs)[np.argsort(order)])
    spread = np.ptp(predicted, axis=0)
    return {"spread_mean": float(spread.mean()), "spread_max": float(spread.max())}


def read_predictions(runs: pd.DataFrame, out: Path) -> dict[str, list[comparison.Predictions]]:
    """The predictions on test.csv of each setting's runs, all in the order of the first run's images."""
    predictions, first = {}, None
    for setting, seed in zip(runs["setting"], runs["seed"], strict=True):
        run = comparison.read_predictions(out / f"{setting}-seed{seed}", like=first)
        first = first or run
        predictions.setdefault(setting, []).append(run)
    return predictions


def write_tables(runs: pd.DataFrame, predictions: dict[str, list[comparison.Predictions]], out: Path) -> None:
    """Write runs.csv, table.csv (means and standard deviations over seeds), table.md and ablation.png."""
    by_setting = runs.groupby("setting", sort=False)
    table = by_setting[[*COSTS, *METRICS, *SPREADS]].agg(["mean", "std"])
    table.columns = [f"{name}_{kind}" for name, kind in table.columns]
    table = table.drop(columns=[f"{name}_std" for name in COSTS])
    table.insert(0, "seeds", by_setting.size())
    rows = [["setting", *COSTS.values(), *METRICS.values(), *SPREADS.values()]]
    for setting, row in table.iterrows():
        intervals = comparison.average_metrics(predictions[setting])
        cells = [f"{row[f'{name}_mean']:.3g}" for name in COSTS]
        cells += [
            f"{value:.4f} ({low:.3f} to {min(high, 1):.3f})"
            for value, (low, high) in (intervals[name] for name in METRICS)
        ]
        cells += [f"{row[f'{name}_mean']:.2g}" for name in SPREADS]
        rows.append([setting, *cells])
    for name, frame in (("runs.csv", runs), ("table.csv", table.reset_index())):
        with atomic_write(out / name) as file:
            frame.to_csv(file, index=False)
    with atomic_write(out / "table.md") as file:
        file.write("\n".join(test_metrics.markdown_table(rows)) + "\n")
    with atomic_write(out / "ablation.png", "wb") as file:
        draw_figure(runs).savefig(file, format="png", dpi=110)


def write_differences(predictions: dict[str, list[comparison.Predictions]], out: Path) -> None:
    """Write differences.md: for every two settings the difference of their means, with its interval over seeds and images."""
    lines = comparison.format_differences(comparison.compare_groups(predictions), list(METRICS))
    if min(map(len, predictions.values())) < 2:
        note = "The intervals of a setting with one seed contain the noise of images, not that of seeds."
        lines.append(f"\n{note}")
    with atomic_write(out / "differences.md") as file:
        file.write("\n".join(lines) + "\n")


def draw_figure(runs: pd.DataFrame) -> Figure:
    """A panel for each metric and for the batch spread; each seed is a dot, their mean a bar."""
    settings = list(runs["setting"].unique())
    panels = METRICS | {"spread_mean": "batch spread (mean, log scale)"}
    figure = Figure(figsize=(3.4 * len(panels), 0.8 + 0.5 * len(settings)), layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True)
    for axis, (column, title) in zip(axes, panels.items(), strict=True):
        for row, setting in enumerate(settings):
            values = runs.loc[runs["setting"] == setting, column]
            axis.plot(values, [row] * len(values), "o", color="C0", alpha=0.6, markersize=6)
            axis.plot(values.mean(), row, "|", color="k", markersize=18)
        if column == "spread_mean":
            axis.set_xscale("log")
        axis.set_title(title)
        axis.set_yticks(range(len(settings)), settings)
        axis.grid(axis="x", alpha=0.3)
    axis.invert_yaxis()  # the panels share it; the first setting is on top
    figure.suptitle("a dot: one seed; a bar: their mean", fontsize=9)
    return figure


def raise_interrupted(number: int, _frame) -> None:
    raise Interrupted(number)


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, raise_interrupted)
    sys.exit(main())
