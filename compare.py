"""Compare runs on the same test set: metrics with intervals, and which differences are more than noise. Try `--help`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from iaa.errors import InputError
from iaa.runtime.command_line import Parser
from iaa.runtime.files import write_json
from iaa.runtime.program import run_command
from option import Option

# fmt: off
TABLE = (
    Option("runs", Path, [], "a run's folder, or its predictions.csv", metavar="RUN", nargs="+", positional=True),
    Option("threshold", float, None, "scores above it count as high, on the scale of the tables (default: the threshold of the runs)"),
    Option("json", Path, None, "also write all numbers to this file"),
)
# fmt: on


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, 2 for bad input."""
    usage = "compare.py RUN [RUN ...] [OPTION ...]"
    about = (
        "Compare runs on the same test set. Prints each metric with its 95 % bootstrap interval over images, and for "
        "every two runs the difference with its paired interval, its p-value, and Holm's correction of it over the pairs. "
        "Runs that differ by their seed alone are compared by their mean, with an interval over seeds and images."
    )
    options = Parser({"": TABLE}, prog="compare.py", usage=usage, description=about).parse_args(argv)
    return run_command("compare.py", lambda: compare_runs(options.runs, options.threshold, options.json))


def compare_runs(paths: Sequence[Path], threshold: float | None, json: Path | None) -> None:
    """Print the tables. json: also write all numbers to this file. Raises InputError."""
    if json is not None and json.exists():
        raise InputError(f"--json {json}: is there already; give another file")
    files = [(path / "predictions.csv" if path.is_dir() else path).resolve() for path in paths]
    if len(set(files)) < len(files):
        raise InputError("the same run is given twice; give each once")
    from iaa.evaluation import bootstrap, comparison  # pandas and scipy are slow to import

    runs: list[comparison.Predictions] = []
    for path in paths:
        runs.append(comparison.read_predictions(path, threshold, runs[0] if runs else None))
    groups = comparison.group_by_seed(runs)
    differences = comparison.compare_groups(groups)
    averaged = {name: group for name, group in groups.items() if len(group) > 1}
    for group in averaged.values():
        print(f"{', '.join(run.name for run in group)} differ by their seed alone: their mean is compared\n")
    print("\n".join(comparison.format_tables(groups, differences)))
    alone, images = "The effect of another training seed is not included", len(runs[0].images)
    if averaged:
        seeds = "Means: Welch's t over the seeds, with the bootstrap's variance over images added."
        alone = f"{seeds} {alone} where a run stands alone"
    print(
        f"\n{images:,} images. MAE, RMSE and the threshold of accuracy, {runs[0].thresholds[1]:g}, are on the scale of "
        f"predictions.csv. Percentile bootstrap over images, {bootstrap.RESAMPLES:,} resamples, the same for all runs. "
        f"More than noise: p below 0.05 after Holm's correction. {alone}."
    )
    if json is None:
        return
    metrics = [{"run": run.name, "metrics": run.metrics, "intervals": run.intervals} for run in runs]
    means = []
    for name, group in averaged.items():
        estimates = comparison.average_metrics(group)
        values, intervals = ({metric: pair[i] for metric, pair in estimates.items()} for i in (0, 1))
        named = {"mean": name, "runs": [run.name for run in group]}
        means.append(named | {"metrics": values, "intervals": intervals})
    pairs = [
        {"first": first, "second": second, "differences": {name: vars(d) for name, d in row.items()}}
        for (first, second), row in differences.items()
    ]
    write_json(json, {"images": images, "runs": metrics, "means": means, "pairs": pairs})


if __name__ == "__main__":
    sys.exit(main())
