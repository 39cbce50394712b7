"""A hyperparameter search: run one without NNI, and show the results of any. Try `--help`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import option
from iaa.errors import InputError
from iaa.runtime.command_line import parse_options, subcommand_parser
from iaa.runtime.files import write_json
from iaa.runtime.program import run_command
from iaa.runtime.signals import StopSignal
from iaa.searching.results import best_options, find_folder, format_table, read_results
from iaa.searching.space import read_space
from option import Option

METRICS = option.OPTIONS["search_metric"].choices
# Options of main_nni.py that a search sets itself.
SEARCH_SETS = ("experiment_dir_name", "search_metric", "resume", "overwrite", "eval", "options")

# fmt: off
SHOWN = (
    Option("experiment", str, None, "folder of runs, or id of an NNI experiment under runs/nni, running or finished", metavar="EXPERIMENT", positional=True),
    Option("metric", str, None, "sort by this (default: what the search maximised)", choices=METRICS),
)
COMMANDS = {
    "run": ("search without NNI, by Optuna (TPE); opens no port; the same command goes on after a kill, and may run several times at once", {"": (
        Option("space", str, "config_search.json", "the search space, as NNI writes it", metavar="FILE"),
        Option("trials", int, None, "number of trials in all", low=1, required=True),
        Option("out", Path, None, "folder of the trials and of the study", metavar="FOLDER", required=True),
        Option("concurrency", int, 1, "trials at a time", low=1),
        Option("metric", str, "accuracy", "what to maximise (default: accuracy, as released)", choices=METRICS),
        Option("pruner", str, "none", "median: stop trials that are below the median of the others", choices=("none", "median")),
        Option("seed", int, None, "seed of the drawn parameters; repeatable only with --concurrency 1"),
        Option("words", str, [], "options of main_nni.py for all trials", metavar="-- OPTION", nargs="*", positional=True),
    )}),
    "show": ("print the trials of a search, the best first", {"": SHOWN}),
    "best": ("write the best trial's options as JSON, for `main_nni.py --options FILE`", {"": (
        *SHOWN, Option("out", Path, None, "where to write (default: best.json in the experiment's folder)"),
    )}),
}
# fmt: on


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand; returns the exit status: 0, 1, 2 for bad input, 128 and more if interrupted."""
    options = subcommand_parser("search.py", __doc__.split(" Try")[0], COMMANDS).parse_args(argv)
    work = run if options.command == "run" else show
    return run_command("search.py", lambda: work(options), "the same command goes on with the search")


def run(options: argparse.Namespace) -> int:
    space = read_space(options.space)
    trial_options = parse_options(options.words)
    for name in trial_options:
        if name in SEARCH_SETS:
            raise InputError(f"--{name} is set by the search; leave it out")
        if name in space:
            raise InputError(f"--{name} is given and in {options.space}, too; leave one out")
    option.complete(trial_options)

    from iaa.searching.optuna_search import Search, open_study  # imports Optuna

    study = open_study(options.out, options.pruner, options.seed)
    with StopSignal() as stop:
        search = Search(study, options.out, space, trial_options, options.metric, stop)
        search.run(options.words, options.trials, options.concurrency)
    results, metric = read_results(options.out)
    print(format_table(results, metric))
    return 0 if any(result.status == "done" for result in results) else 1


def show(options: argparse.Namespace) -> None:
    folder = find_folder(options.experiment)
    results, metric = read_results(folder, options.metric)
    if options.command == "show":
        print(format_table(results, metric))
    else:
        trial, chosen = best_options(results)
        path = options.out or folder / "best.json"
        write_json(path, chosen)
        print(f"{path}: trial {trial.name}, {metric} {trial.value:.4f} in epoch {trial.best_epoch}")
        print(f"python main_nni.py --options {path}")


if __name__ == "__main__":
    sys.exit(main())
