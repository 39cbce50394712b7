"""What interest points and offset refinement are worth: trains settings x seeds, and writes one table and figure.

    python -m benchmarks.ablation --out runs/ablation
    python -m benchmarks.ablation --preset paper --models timm/resnet18 "timm/resnet50,path_to_model_weight=FILE"
    python -m benchmarks.ablation --settings batch image "interest_points=running,refinement=off" --seeds 0 1 \
        --out runs/tad66k -- --dataset tad66k --path_to_images IMAGES --path_to_save_csv CSVS

What follows `--` goes to main_nni.py, for every run. Interrupted, the same command goes on where it stopped. `--out`
gets a folder for each run, runs.csv (a row per run), table.csv, table.md, ablation.png, and differences.md: which settings
differ by more than noise over seeds and images.

Intervals are of the mean, over seeds and images (95 %). GFLOP are of one image's forward pass (2 per multiply-add), images/s
of steps of the run's batch and precision on images in memory, without the loader.

The batch spread: every test image is scored in batches of 1, 4 and 16, in the CSV's order and in a shuffled one; its
spread is its highest score less its lowest.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from tqdm import tqdm

import option
from benchmarks import throughput
from commands.errors import TrainingError, guarded
from commands.files import atomic_write, read_json_object, write_json
from commands.parser import Parser
from commands.signals import Interrupted
from dataset import Transform, make_loader, read_splits
from evaluation import compare, figures
from models import read_weights
from option import InputError, Option
from photographs.labels import FORMATS
from training import engine
from training.build import make_model, pick_device, pick_format, pick_precisions
from training.checkpoint import LAST, PREVIOUS
from training.steps import Precision, allow_tf32
from util import make_loss, scores

SETTINGS = {
    "batch": {"interest_points": "batch", "refinement": "released"},
    "image": {"interest_points": "image", "refinement": "released"},
    "running": {"interest_points": "running", "refinement": "released"},
    "off": {"interest_points": "batch", "refinement": "off"},
    "scheduled": {"interest_points": "batch", "refinement": "scheduled"},
}
# After the paper: plain DAT, its two ideas one after the other, and our ways of both.
PAPER = {
    "dat": {"interest_points": "grid", "refinement": "off"},
    "points": {"interest_points": "batch", "refinement": "off"},
    "eat": {"interest_points": "batch", "refinement": "released"},
    "image": SETTINGS["image"],
    "running": SETTINGS["running"],
    "scheduled": SETTINGS["scheduled"],
}
PRESETS = {"ours": SETTINGS, "paper": PAPER}
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
    Option("settings", str, None, f"{', '.join(SETTINGS | PAPER)}, or option=value,option=value (default: the preset's)", metavar="SETTING", nargs="+"),
    Option("preset", str, "ours", f"ours: {', '.join(SETTINGS)}; paper: {', '.join(PAPER)}, which are plain DAT, DAT with interest points, EAT as released, and ours", choices=tuple(PRESETS)),
    Option("models", str, [], "other networks beside them: a --model of main_nni.py, and after a comma options of its own: timm/NAME,path_to_model_weight=FILE", metavar="MODEL", nargs="+"),
    Option("seeds", int, [0, 1, 2], "of the runs of each setting (default: 0 1 2)", nargs="+"),
    Option("out", Path, Path("runs/ablation"), "where the runs and tables go", metavar="FOLDER"),
    Option("common", str, [], "options of main_nni.py", metavar="-- OPTION", nargs="*", positional=True),
)
# fmt: on


def main(argv: list[str] | None = None) -> int:
    """Train what is missing, measure, and write the tables. Returns the exit status, as main_nni.py's."""
    about, raw = __doc__, argparse.RawDescriptionHelpFormatter
    parser = Parser({"": TABLE}, prog="python -m benchmarks.ablation", description=about, formatter_class=raw)
    given = parser.parse_args(argv)

    def work() -> None:
        texts = given.settings or list(PRESETS[given.preset])
        settings = [parse_setting(text) for text in [*texts, *(f"model={text}" for text in given.models)]]
        runs = pd.DataFrame(run_all(settings, given.seeds, given.out, given.common))
        groups = read_groups(runs, given.out)
        write_tables(runs, groups, given.out)
        write_differences(groups, given.out)
        for name in ("table.md", "differences.md"):
            print((given.out / name).read_text(encoding="utf-8"))

    return guarded("ablation", work, "the same command goes on")


def parse_setting(text: str) -> tuple[str, dict[str, str]]:
    """A setting's name and options. Raises InputError."""
    if text in (known := SETTINGS | PAPER):
        return text, known[text]
    options = dict(part.split("=", 1) for part in text.split(",") if "=" in part)
    if len(options) != len(text.split(",")) or not options.keys() <= option.OPTIONS.keys():
        raise InputError(
            f"--settings {text}: neither one of {', '.join(known)} nor option=value,option=value"
        )
    return text.removeprefix("model=").replace("/", "_"), options


def run_all(settings: list, seeds: list[int], out: Path, common: list[str]) -> list[dict]:
    """A row of results for each setting and seed. Raises InputError, TrainingError."""
    rows = []
    cases = [(name, options, seed) for name, options in settings for seed in seeds]
    bar = tqdm(cases, "ablation", unit="run", disable=None)
    for name, options, seed in bar:
        bar.set_postfix_str(f"{name}, seed {seed}")
        words = [*common, "--seed", str(seed)]
        for key, value in options.items():
            words += [f"--{key}"] if option.OPTIONS[key].type is bool else [f"--{key}", value]
        row = run_one(out / f"{name}-seed{seed}", words) | cost(out / f"{name}-seed{seeds[0]}")
        rows.append({"setting": name, **options, "seed": seed} | row)
    return rows


def cost(folder: Path) -> dict[str, float]:
    """COSTS of the network of the run in `folder`, measured once: a median of five steps of the run's batch each."""
    if found := read_json_object(folder / "cost.json"):
        return found
    options = argparse.Namespace(**read_json_object(folder / "options.json"))
    device, form = pick_device(options.gpu_id), FORMATS["ava"]  # steps of ten outputs, whatever the data

    def build(_):
        return make_model(options, None, form, options.dataset, device)

    found = {"parameters": sum(p.numel() for p in build(None).parameters()) / 1e6}
    found["gflop"] = throughput.forward_gflop(build(None))
    names = {dtype: name for name, dtype in throughput.DTYPES.items()}
    for training, column in ((True, "training_speed"), (False, "evaluation_speed")):
        precision = names[pick_precisions(options, device)[not training].dtype]
        size = options.batch_size if training else options.eval_batch_size
        given = size, precision, options.compile, training, False, str(device), build
        found[column] = throughput.measure(throughput.Case("", *given), None, 5, 1)["images_per_second"]
    write_json(folder / "cost.json", found)
    return found


def run_one(folder: Path, words: list[str]) -> dict[str, float]:
    """Train with the options `words` in `folder`, or go on, or take what is there; and measure the batch spread."""
    before = read_json_object(folder / "command.json").get("options", words)
    if before != words:
        raise InputError(
            f"{folder}: a run with {' '.join(before)}, not {' '.join(words)}; give another --out"
        )
    if row := read_json_object(folder / "result.json"):
        return row
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "command.json", {"options": words})
    saved = any((folder / "checkpoints" / name).is_file() for name in (LAST, PREVIOUS))
    result = train(folder, ["--resume"] if saved else ["--overwrite", *words])
    row = {name: result[name] for name in (*METRICS, "best_epoch", "seconds")} | batch_spread(folder)
    write_json(folder / "result.json", row)
    return row


def train(folder: Path, words: list[str]) -> dict:
    """The result of a run by main_nni.py. Raises TrainingError, Interrupted."""
    command = [sys.executable, str(ROOT / "main_nni.py"), "--experiment_dir_name", str(folder), *words]
    with open(folder / "train.log", "a+", encoding="utf-8") as log:
        # In a session of its own, so that Ctrl-C reaches it once, from here; then it saves.
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True
        )
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


def batch_spread(folder: Path) -> dict[str, float]:
    """How far the scores of the run in `folder` move between batches: mean and largest spread over its test images."""
    options = argparse.Namespace(**read_json_object(folder / "options.json"))
    device, form = pick_device(options.gpu_id), pick_format(options)
    weights = read_weights(folder / "checkpoints" / "best.pth")
    model = make_model(options, weights, form, options.dataset, device)
    labels = read_splits(
        options.path_to_save_csv,
        options.path_to_images,
        form,
        train=False,
        skip_missing=options.skip_missing,
        limit=options.limit,
    ).test
    transform = Transform(options.dataset, model.img_size, train=False)
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


def read_groups(runs: pd.DataFrame, out: Path) -> dict[str, list[compare.Predictions]]:
    """The predictions on test.csv of each setting's runs."""
    groups, first = {}, None
    for setting, seed in zip(runs["setting"], runs["seed"], strict=True):
        tested = compare.read_predictions(out / f"{setting}-seed{seed}", like=first)
        first = first or tested
        groups.setdefault(setting, []).append(tested)
    return groups


def write_tables(runs: pd.DataFrame, groups: dict[str, list[compare.Predictions]], out: Path) -> None:
    """runs.csv, table.csv (means and standard deviations over seeds), table.md and ablation.png."""
    by_setting = runs.groupby("setting", sort=False)
    table = by_setting[[*COSTS, *METRICS, *SPREADS]].agg(["mean", "std"])
    table.columns = [f"{name}_{kind}" for name, kind in table.columns]
    table = table.drop(columns=[f"{name}_std" for name in COSTS])
    table.insert(0, "seeds", by_setting.size())
    rows = [["setting", *COSTS.values(), *METRICS.values(), *SPREADS.values()]]
    for setting, row in table.iterrows():
        found = compare.means(groups[setting])
        cells = [f"{row[f'{name}_mean']:.3g}" for name in COSTS]
        cells += [
            f"{value:.4f} ({low:.3f} to {min(high, 1):.3f})"
            for value, (low, high) in (found[name] for name in METRICS)
        ]
        cells += [f"{row[f'{name}_mean']:.2g}" for name in SPREADS]
        rows.append([setting, *cells])
    for name, frame in (("runs.csv", runs), ("table.csv", table.reset_index())):
        with atomic_write(out / name) as file:
            frame.to_csv(file, index=False)
    with atomic_write(out / "table.md") as file:
        file.write("\n".join(figures.markdown(rows)) + "\n")
    with atomic_write(out / "ablation.png", "wb") as file:
        draw(runs).savefig(file, format="png", dpi=110)


def write_differences(groups: dict[str, list[compare.Predictions]], out: Path) -> None:
    """differences.md: for every two settings the difference of their means over seeds, drawn over seeds and images."""
    lines = compare.difference_lines(compare.compare(groups), list(METRICS))
    if min(map(len, groups.values())) < 2:
        lines.append(
            "\nOf a setting with one seed the intervals hold what other images would change, and no more."
        )
    with atomic_write(out / "differences.md") as file:
        file.write("\n".join(lines) + "\n")


def draw(runs: pd.DataFrame) -> Figure:
    """A panel for each metric and for the batch spread: a dot for each seed, a bar at their mean."""
    settings = list(runs["setting"].unique())
    panels = METRICS | {"spread_mean": "batch spread (mean, log scale)"}
    figure = Figure(figsize=(3.4 * len(panels), 0.8 + 0.5 * len(settings)), layout="constrained")
    for axis, (column, title) in zip(
        figure.subplots(1, len(panels), sharey=True), panels.items(), strict=True
    ):
        for place, setting in enumerate(settings):
            values = runs.loc[runs["setting"] == setting, column]
            axis.plot(values, [place] * len(values), "o", color="C0", alpha=0.6, markersize=6)
            axis.plot(values.mean(), place, "|", color="k", markersize=18)
        if column == "spread_mean":
            axis.set_xscale("log")
        axis.set_title(title)
        axis.set_yticks(range(len(settings)), settings)
        axis.grid(axis="x", alpha=0.3)
    axis.invert_yaxis()  # shared: the first setting on top
    figure.suptitle("a dot: one seed; a bar: their mean", fontsize=9)
    return figure


def interrupted(number: int, _frame) -> None:
    raise Interrupted(number)


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupted)
    sys.exit(main())
