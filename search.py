"""A hyperparameter search: run one without NNI, and see what came of any. Try `--help`."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import option
from commands.errors import guarded
from commands.files import atomic_write, to_json
from commands.signals import Watch
from option import InputError, Parser, whole
from searching import plots
from searching.space import read_space
from searching.trials import best_options, find, read_trials, table

log = logging.getLogger("eat")

METRICS = option.OPTIONS["search_metric"].choices
OWN = (
    "experiment_dir_name",
    "search_metric",
    "resume",
    "overwrite",
    "eval",
    "options",
)  # of the search, not of a trial


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand; returns the exit status: 0, 1, 2 for bad input, 128 and more if interrupted."""
    options = parse(argv)
    work = {"run": run, "show": show, "best": best, "plot": plot}[options.command]
    return guarded("search.py", lambda: work(options), "the same command goes on with the search")


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; exits with status 2 where it is wrong."""
    parser = Parser(prog="search.py", description=__doc__.split(" Try")[0], allow_abbrev=False)
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")

    def command(name: str, help_: str) -> argparse.ArgumentParser:
        return commands.add_parser(
            name, help=help_, description=f"{help_[0].upper()}{help_[1:]}.", allow_abbrev=False
        )

    made = command(
        "run",
        "search without NNI, by Optuna (TPE); opens no port; the same command goes on after a kill, and may run several times at once",
    )
    made.add_argument(
        "--space",
        metavar="FILE",
        default="config_search.json",
        help="the search space, as NNI writes it (default: config_search.json)",
    )
    made.add_argument(
        "--trials", metavar="N", type=whole(1), required=True, help="how many trials there are to be in all"
    )
    made.add_argument(
        "--out", metavar="FOLDER", type=Path, required=True, help="where the trials and the study go"
    )
    made.add_argument(
        "--storage",
        metavar="URL",
        help="a database for the study, as postgresql://USER:PASSWORD@HOST/DATABASE (default: search.db in --out)",
    )
    made.add_argument(
        "--concurrency", metavar="N", type=whole(1), default=1, help="trials at a time (default: 1)"
    )
    made.add_argument(
        "--metric",
        choices=METRICS,
        default="accuracy",
        help="what to maximise (default: accuracy, as released)",
    )
    made.add_argument(
        "--pruner",
        choices=("none", "median"),
        default="none",
        help="end trials early that are below the median (default: none)",
    )
    made.add_argument(
        "--seed", metavar="N", type=whole(), help="seed of the draws; exact only with --concurrency 1"
    )
    made.add_argument("words", metavar="-- OPTION", nargs="*", help="options of main_nni.py, for all trials")

    for name, help_ in {
        "show": "print the trials of a search, the best first",
        "best": "write the best trial's options as JSON, for `main_nni.py --options FILE`",
        "plot": "draw every trial's curve, and each hyperparameter against the metric, to a PNG",
    }.items():
        made = command(name, help_)
        made.add_argument(
            "experiment",
            metavar="EXPERIMENT",
            help="a folder of runs, or the id of an NNI experiment under runs/nni; live or finished",
        )
        made.add_argument(
            "--metric", choices=METRICS, help="sort by this (default: what the search maximised)"
        )
        if name != "show":
            ending = "best.json" if name == "best" else "search.png"
            made.add_argument(
                "--out",
                metavar="FILE",
                type=Path,
                help=f"where to write (default: {ending} in the experiment's folder)",
            )
    return parser.parse_args(argv)


def _writable(path: Path) -> Path:
    """The file to write. Raises InputError where it cannot be one."""
    if path.is_dir() or not path.parent.is_dir():
        raise InputError(
            f"{path}: {'is a folder' if path.is_dir() else 'its folder is not there'}; give another --out"
        )
    return path


def run(options: argparse.Namespace) -> int:
    """The subcommand `run`."""
    from searching.driver import Search  # the only user of Optuna

    space = read_space(options.space)
    fixed = option.parse(options.words)
    for name in OWN:
        if name in fixed:
            raise InputError(f"--{name} is the search's own; leave it out")
    for name in space:
        if name in fixed:
            raise InputError(f"--{name} is given and in {options.space}, too; leave one out")
    option.complete(fixed)
    search = Search(
        options.out, space, options.words, options.metric, options.seed, options.pruner, options.storage
    )
    with Watch() as watch:
        search.run(options.trials, options.concurrency, watch)
    trials, name = read_trials(options.out)
    print(table(trials, name))
    return 0 if any(trial.status == "done" for trial in trials) else 1


def show(options: argparse.Namespace) -> None:
    """The subcommand `show`."""
    trials, name = read_trials(find(options.experiment), options.metric)
    print(table(trials, name))


def best(options: argparse.Namespace) -> None:
    """The subcommand `best`."""
    folder = find(options.experiment)
    trials, name = read_trials(folder, options.metric)
    first, chosen = best_options(trials)
    path = _writable(options.out or folder / "best.json")
    with atomic_write(path) as file:
        file.write(to_json(chosen, indent=2) + "\n")
    print(f"{path}: trial {first.name}, {name} {first.value:.4f} in epoch {first.best_epoch}")
    print(f"python main_nni.py --options {path}")


def plot(options: argparse.Namespace) -> None:
    """The subcommand `plot`."""
    folder = find(options.experiment)
    trials, name = read_trials(folder, options.metric)
    if not any(len(trial.history) for trial in trials):
        raise InputError(f"{folder}: no trial has finished an epoch yet")
    path = _writable(options.out or folder / "search.png")
    plots.draw(trials, name, f"{folder.name}: {len(trials)} trials", path)
    print(path)


if __name__ == "__main__":
    sys.exit(main())
