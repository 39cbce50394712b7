"""The command line of predict.py."""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from inference.explain import ALL
from option import CPUS, InputError, Parser, add_weights, score_range, whole

DESCRIPTION = "Score photographs with trained weights, and say why."


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The options; exits with status 2 where they are wrong."""
    parser = Parser(
        prog="predict.py",
        usage="predict.py PATH [PATH ...] --weights FILE [OPTION ...]",
        description=DESCRIPTION,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "paths",
        nargs="*",
        metavar="PATH",
        help="a photograph, a folder (with those below it), or a glob in quotes",
    )
    add(
        "--list",
        action="append",
        default=[],
        metavar="FILE",
        help="a text file with a path in each line; -: standard input",
    )
    add_weights(parser)
    _add_points(parser)

    group = parser.add_argument_group("what is written")
    add = group.add_argument
    add(
        "--out",
        metavar="FILE",
        help="table of scores: .csv, .jsonl or .parquet (default: on the terminal only)",
    )
    add(
        "--append",
        action="store_true",
        help="go on with --out: photographs that have a row there are left out",
    )
    add("--overwrite", action="store_true", help="replace --out, --report and --save_calibrated")
    add(
        "--reference",
        metavar="FILE",
        help="a run's predictions.csv, or a table of scores: say what share of it lies below",
    )
    add("--explain", metavar="FOLDER", type=Path, help="draw for each photograph where the network looks")
    add(
        "--layer",
        default=ALL,
        metavar="NAME",
        help="one deformable layer, as stages.2.attns.1 (default: all)",
    )
    add(
        "--mask",
        metavar="FOLDER",
        type=Path,
        help="pictures named as the photographs, white where the foreground is; without, it is the centre half",
    )
    add(
        "--report",
        metavar="FILE",
        type=Path,
        help="a page for the browser: gallery, votes, attention, distribution",
    )
    add(
        "--report_images",
        type=whole(1),
        default=5000,
        metavar="N",
        help="photographs on the page: the best, the worst and a sample (default: 5000)",
    )
    add(
        "--compare",
        metavar="FILE",
        type=Path,
        help="--report: other weights, or a table of scores, side by side",
    )

    group = parser.add_argument_group("how it is done")
    add = group.add_argument
    add(
        "--upright",
        action="store_true",
        help="turn photographs as EXIF says; by default they are as stored, as in training",
    )
    add(
        "--decode",
        choices=("pil", "fast"),
        default="pil",
        help="pil: evaluation's pixels; fast: within a grey level of them (default: pil)",
    )
    add("--batch_size", type=whole(1), default=16, metavar="N", help="photographs per batch (default: 16)")
    add(
        "--num_workers",
        type=whole(),
        default=min(CPUS, 8),
        metavar="N",
        help="processes that read photographs (default: all cores, at most 8)",
    )
    add("--gpu_id", metavar="ID", help="GPU to use, or cpu (default: the first GPU, else the CPU)")
    add(
        "--amp",
        choices=("auto", "bf16", "off"),
        default="auto",
        help="number format of matrix products; auto: bf16 on a GPU that has it",
    )
    options = parser.parse_args(argv)
    options.score_range = score_range(options)
    return options  # fmt: skip


def _add_points(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("calibration")
    add = group.add_argument
    add(
        "--calibrate_on",
        nargs="+",
        default=[],
        metavar="PATH",
        help="first estimate running interest points from these photographs, best those trained on",
    )
    add(
        "--calibrate_points",
        type=whole(1),
        default=2000,
        metavar="N",
        help="how many of them, drawn at random (default: 2000)",
    )
    add("--save_calibrated", metavar="FILE", type=Path, help="keep the calibrated weights")  # fmt: skip


def check(options: argparse.Namespace) -> None:
    """Raises InputError for options that contradict each other, and for what could not be written at the end."""
    for name, owners in (
        ("append", ["out"]),
        ("overwrite", ["out", "report", "save_calibrated"]),
        ("compare", ["report"]),
        ("save_calibrated", ["calibrate_on"]),
        ("mask", ["explain", "report"]),
    ):
        if getattr(options, name) and not any(getattr(options, owner) for owner in owners):
            raise InputError(f"--{name} belongs to --{' or --'.join(owners)}; give that, too")
    if options.append and options.overwrite:
        raise InputError("--append and --overwrite exclude each other; leave one out")
    if options.layer != ALL and not (options.explain or options.report):
        raise InputError("--layer belongs to --explain or --report; give one of them, too")
    _check_places(options)
    for name in ("mask", "explain"):
        path = getattr(options, name)
        if path and path.exists() and not path.is_dir():
            raise InputError(f"--{name} {path}: is a file, not a folder")
    if options.mask and not options.mask.is_dir():
        raise InputError(f"--mask {options.mask}: no such folder")
    if options.compare and not options.compare.exists():
        raise InputError(f"--compare {options.compare}: no such file")
    if options.explain:
        options.explain.mkdir(parents=True, exist_ok=True)
        _try_to_write(options.explain)


def _check_places(options: argparse.Namespace) -> None:
    """What is written must be files, in folders that can be written to, and none of what is read."""
    read = {}
    for name in ("weights", "reference", "compare", "list", "paths", "calibrate_on"):
        given = getattr(options, name)
        for path in given if isinstance(given, list) else [given] * (given is not None):
            read[os.path.realpath(path)] = "PATH" if name == "paths" else f"--{name}"
    for name in ("out", "report", "save_calibrated"):
        given = getattr(options, name)
        if given is None:
            continue
        path = Path(given)
        if (place := os.path.realpath(path)) in read:
            raise InputError(f"--{name} {path}: is given as {read[place]}, too; give another file")
        read[place] = f"--{name}"
        if path.is_dir() or not path.absolute().parent.is_dir():
            what = "is a folder" if path.is_dir() else "lies in a folder that is not there"
            raise InputError(f"--{name} {path}: {what}; give a file")
        if (
            name != "out"
            and path.exists()
            and not options.overwrite
            and not (options.append and name == "report")
        ):
            raise InputError(f"--{name} {path}: is there already; give another, or --overwrite")
        _try_to_write(path.absolute().parent)


def _try_to_write(folder: Path) -> None:
    """Raises OSError now, not after all is scored."""
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        error.filename = str(folder)
        raise
