"""A hyperparameter search: run one without NNI, and see what came of any. Try `--help`."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import option
from commands.errors import guarded
from commands.files import write_json
from commands.parser import parse_options, with_commands
from commands.signals import Watch
from option import InputError, Option
from searching.space import read_space
from searching.trials import Trial, best_options, draw, find, read_trials, table

log = logging.getLogger("eat")

METRICS = option.OPTIONS["search_metric"].choices
# Options of the search, not of a trial.
OWN = ("experiment_dir_name", "search_metric", "resume", "overwrite", "eval", "options")

# fmt: off
SEEN = (
    Option("experiment", str, None, "a folder of runs, or the id of an NNI experiment under runs/nni; live or finished", metavar="EXPERIMENT", positional=True),
    Option("metric", str, None, "sort by this (default: what the search maximised)", choices=METRICS),
    Option("storage", str, None, "the database of the search, for its trials on other machines", metavar="URL"),
)
COMMANDS = {
    "run": ("search without NNI, by Optuna (TPE); opens no port; the same command goes on after a kill, and may run several times at once", {"": (
        Option("space", str, "config_search.json", "the search space, as NNI writes it", metavar="FILE"),
        Option("trials", int, None, "how many trials there are to be in all", low=1, required=True),
        Option("out", Path, None, "where the trials and the study go", metavar="FOLDER", required=True),
        Option("storage", str, None, "a database for the study, which machines may share, as postgresql://USER:PASSWORD@HOST/DATABASE or mysql://... (default: search.db in --out)", metavar="URL"),
        Option("concurrency", int, 1, "trials at a time", low=1),
        Option("metric", str, "accuracy", "what to maximise (default: accuracy, as released)", choices=METRICS),
        Option("pruner", str, "none", "end trials early that are below the median", choices=("none", "median")),
        Option("seed", int, None, "seed of the draws; exact only with --concurrency 1"),
        Option("words", str, [], "options of main_nni.py, for all trials", metavar="-- OPTION", nargs="*", positional=True),
    )}),
    "show": ("print the trials of a search, the best first", {"": SEEN}),
    "best": ("write the best trial's options as JSON, for `main_nni.py --options FILE`", {"": (
        *SEEN, Option("out", Path, None, "where to write (default: best.json in the experiment's folder)"),
    )}),
    "plot": ("draw every trial's curve, and each hyperparameter against the metric, to a PNG", {"": (
        *SEEN, Option("out", Path, None, "where to write (default: search.png in the experiment's folder)"),
    )}),
}
# fmt: on


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand; returns the exit status: 0, 1, 2 for bad input, 128 and more if interrupted."""
    options = parse(argv)
    work = {"run": run, "show": show, "best": best, "plot": plot}[options.command]
    return guarded("search.py", lambda: work(options), "the same command goes on with the search")


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; exits with status 2 where it is wrong."""
    return with_commands("search.py", __doc__.split(" Try")[0], COMMANDS).parse_args(argv)


def _out(options: argparse.Namespace, usual: str) -> Path:
    """The file to write. Raises InputError for a folder."""
    path = options.out or find(options.experiment) / usual
    if path.is_dir():
        raise InputError(f"{path}: is a folder; give another --out")
    return path


def run(options: argparse.Namespace) -> int:
    from searching.driver import Search, shared  # the only user of Optuna

    space = read_space(options.space)
    fixed = parse_options(options.words)
    for name in fixed:
        if name in OWN:
            raise InputError(f"--{name} is the search's own; leave it out")
        if name in space:
            raise InputError(f"--{name} is given and in {options.space}, too; leave one out")
    option.complete(fixed)
    with Watch() as watch:
        search = Search(options, space, fixed, watch)
        search.run()
        trials, name = read_trials(options.out, options.metric, shared(search.study))
    print(table(trials, name))
    return 0 if any(trial.status == "done" for trial in trials) else 1


def _seen(options: argparse.Namespace) -> tuple[list[Trial], str]:
    """The trials of a search, the best first, and the metric; with --storage, those of other machines, too."""
    if not options.storage:
        return read_trials(find(options.experiment), options.metric)
    from searching.driver import load, shared

    folder = Path(options.experiment)
    study = load(options.storage, folder)
    return read_trials(folder, options.metric or study.user_attrs["search"]["metric"], shared(study))


def show(options: argparse.Namespace) -> None:
    print(table(*_seen(options)))


def best(options: argparse.Namespace) -> None:
    trials, name = _seen(options)
    first, chosen = best_options(trials)
    path = _out(options, "best.json")
    write_json(path, chosen)
    print(f"{path}: trial {first.name}, {name} {first.value:.4f} in epoch {first.best_epoch}")
    print(f"python main_nni.py --options {path}")


def plot(options: argparse.Namespace) -> None:
    trials, name = _seen(options)
    if not any(len(trial.history) for trial in trials):
        raise InputError(f"{options.experiment}: no trial has finished an epoch yet")
    path = _out(options, "search.png")
    draw(trials, name, f"{Path(options.experiment).name}: {len(trials)} trials", path)
    print(path)


if __name__ == "__main__":
    sys.exit(main())
