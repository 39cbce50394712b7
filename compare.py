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
        "every two runs the difference with its paired interval, its p-value, and Holm's correction of it over the pairs."
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
    differences = comparison.compare_groups({run.name: [run] for run in runs})
    images = len(runs[0].images)
    print("\n".join(comparison.format_tables(runs, differences)))
    print(
        f"\n{images:,} images. MAE, RMSE and the threshold of accuracy, {runs[0].thresholds[1]:g}, are on the scale of "
        f"predictions.csv. Percentile bootstrap over images, {bootstrap.RESAMPLES:,} resamples, the same for all runs. "
        "More than noise: p below 0.05 after Holm's correction. The effect of another training seed is not included."
    )
    if json is not None:
        metrics = [{"run": run.name, "metrics": run.metrics, "intervals": run.intervals} for run in runs]
        pairs = [
            {"first": first, "second": second, "differences": {name: vars(d) for name, d in row.items()}}
            for (first, second), row in differences.items()
        ]
        write_json(json, {"images": images, "runs": metrics, "pairs": pairs})


if __name__ == "__main__":
    sys.exit(main())
