"""The command line of prepare_data.py."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from option import CPUS, DATASETS, Parser, finite, whole
from photographs.copies import NEAR


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The options and the `command`; exits with status 2 where they are wrong."""
    parser = Parser(
        prog="prepare_data.py",
        description="From the official downloads to what training reads: CSVs, a look at every picture, a cache.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    _add_datasets(commands)
    _add_check(commands)
    _add_cache(commands)
    return parser.parse_args(argv)


def _add_command(commands, name: str, help_: str) -> argparse.ArgumentParser:
    return commands.add_parser(
        name, help=help_, description=f"{help_[0].upper()}{help_[1:]}.", allow_abbrev=False
    )


def _add_datasets(commands) -> None:
    def dataset(name: str, help_: str, labels: str, val_share: float, test_share: float | None = None):
        made = _add_command(commands, name, help_)
        flag = "--scores" if name == "flickr_aes" else "--labels"
        metavar = "FOLDER" if labels.startswith("folder") else "FILE"
        made.add_argument(flag, metavar=metavar, required=True, help=labels)
        made.add_argument(
            "--images", metavar="FOLDER", help="folder of the pictures; without it they are not looked for"
        )
        made.add_argument(
            "--out",
            metavar="FOLDER",
            type=Path,
            required=True,
            help="where train.csv, val.csv, test.csv and the summary go",
        )
        extra = made.add_argument_group("this dataset's")
        shares = made.add_argument_group("splits and pictures")
        shares.add_argument(
            "--seed", type=whole(), default=0, metavar="N", help="seed of random splits (default: 0)"
        )
        shares.add_argument(
            "--val_share",
            type=_share,
            default=val_share,
            metavar="X",
            help=f"share for val.csv, where the official files do not say (default: {val_share})",
        )
        if test_share is not None:
            shares.add_argument(
                "--test_share",
                type=_share,
                default=test_share,
                metavar="X",
                help=f"share for test.csv, where there is no official one (default: {test_share})",
            )
        shares.add_argument(
            "--no_check", action="store_true", help="only look whether the pictures are there; decode none"
        )
        shares.add_argument("--overwrite", action="store_true", help="replace the CSVs in --out")
        _add_workers(shares)
        return extra

    made = dataset("ava", "AVA, from AVA.txt", "the official AVA.txt", 0.05, 0.05)
    made.add_argument(
        "--split",
        choices=("authors", "official", "random"),
        help="whose test set: the list that EAT's authors published; AVA's own, by --test_list; or a random one by seed "
        "(default: official with --test_list, else authors)",
    )
    made.add_argument(
        "--test_list",
        metavar="FILE",
        nargs="+",
        default=[],
        help="--split official: AVA's lists of image ids, as generic_test.jpgl; one with `train` in its name, as "
        "generic_ss_train.jpgl, has the only rows to train on",
    )
    made.add_argument(
        "--skip_missing", action="store_true", help="go on without ids of the lists that AVA.txt lacks"
    )

    made = dataset(
        "tad66k",
        "TAD66K, or one of its themes",
        "folder of the official labels, with merge/ and unmerge/",
        0.1,
    )
    made.add_argument(
        "--theme", metavar="WORD", help="one of the themes of unmerge/ (default: merge/, all of them)"
    )

    made = dataset("flickr_aes", "FLICKR-AES", "the official FLICKR-AES_image_score.txt", 0.1, 0.1)
    made.add_argument(
        "--workers",
        metavar="FILE",
        help="the official FLICKR-AES_image_labeled_by_each_worker.csv: the usual split, by held-out workers "
        "(default: a random one by seed)",
    )

    dataset("aadb", "AADB", "folder of the official imgList...Regression_score.txt", 0.1)
    dataset("para", "PARA", "folder of the official PARA-GiaaTrain.csv and PARA-GiaaTest.csv", 0.1)

    made = dataset("csv", "any other table, its columns named by options", "the table", 0.1, 0.1)
    made.add_argument(
        "--separator",
        default=",",
        metavar="C",
        help="what separates its columns; tab for a tab (default: a comma)",
    )
    made.add_argument(
        "--image_column",
        default="image",
        metavar="WORD",
        help="column of the picture's file name (default: image)",
    )
    made.add_argument(
        "--suffix", default="", metavar="WORD", help="added to the names, as .jpg (default: nothing)"
    )
    made.add_argument("--score_column", metavar="WORD", help="column of the score (default: score)")
    made.add_argument(
        "--vote_columns", nargs="+", metavar="WORD", help="instead: columns of the votes, lowest level first"
    )
    made.add_argument(
        "--split_column", metavar="WORD", help="column that says train, val or test (default: random by seed)"
    )
    made.add_argument(
        "--score_min", type=finite, default=0.0, metavar="X", help="lowest possible score (default: 0)"
    )
    made.add_argument(
        "--score_max", type=finite, default=1.0, metavar="X", help="highest possible score (default: 1)"
    )


def _add_check(commands) -> None:
    made = _add_command(
        commands,
        "check",
        "decode every picture and say what training will do with it; goes on where it was interrupted",
    )
    made.add_argument("--images", metavar="FOLDER", required=True, help="folder of the pictures")
    made.add_argument(
        "--csv",
        metavar="FILE",
        nargs="+",
        type=Path,
        default=[],
        help="look at the pictures named here only (default: all in the folder)",
    )
    made.add_argument("--out", metavar="FOLDER", type=Path, required=True, help="where pictures.csv goes")
    made.add_argument(
        "--clean",
        metavar="FOLDER",
        type=Path,
        help="write the CSVs there without the pictures that stop or spoil training, and train.csv without the copies "
        "of --copies",
    )
    made.add_argument(
        "--copies",
        action="store_true",
        help="also look for the same picture in two splits under two names: same bytes, same pixels, or nearly the same look",
    )
    made.add_argument(
        "--near",
        type=whole(),
        default=NEAR,
        metavar="N",
        help=f"--copies: perceptual hashes (64 bits) that differ in no more bits are copies (default: {NEAR})",
    )
    _add_workers(made)


def _add_cache(commands) -> None:
    made = _add_command(
        commands,
        "cache",
        "decode and resize the pictures once, for `main_nni.py --cache`; verifies and repairs a cache",
    )
    made.add_argument(
        "--dataset",
        choices=[name for name in DATASETS if name != "demo"],
        required=True,
        metavar="WORD",
        help="whose CSVs they are: ava, tad66k, flickr_aes, aadb, para, csv",
    )
    made.add_argument("--images", metavar="FOLDER", required=True, help="folder of the pictures")
    made.add_argument(
        "--csv", metavar="FOLDER", type=Path, required=True, help="folder of train.csv, val.csv and test.csv"
    )
    made.add_argument("--out", metavar="FOLDER", required=True, help="the cache")
    made.add_argument(
        "--size", type=_side, default=224, metavar="N", help="side of the network's input (default: 224)"
    )
    made.add_argument(
        "--decode", choices=("auto", "pil", "fast"), default="auto", help="as in main_nni.py (default: auto)"
    )
    made.add_argument(
        "--released_protocol", action="store_true", help="as in main_nni.py: PIL's pixels in training, too"
    )
    made.add_argument(
        "--val_share",
        type=_share,
        default=0.1,
        metavar="X",
        help="as in main_nni.py, where there is no val.csv (default: 0.1)",
    )
    made.add_argument("--seed", type=whole(), default=0, metavar="N", help="as in main_nni.py (default: 0)")
    _add_workers(made)


def _add_workers(made) -> None:
    made.add_argument(
        "--num_workers",
        type=whole(),
        default=CPUS,
        metavar="N",
        help="processes that read pictures (default: all cores)",
    )


def _share(text: str) -> float:
    value = finite(text)
    if not 0 < value < 0.5:
        raise argparse.ArgumentTypeError(f"{text} must lie between 0 and 0.5")
    return value


def _side(text: str) -> int:
    side = whole()(text)
    if not 8 <= side <= 4096:
        raise argparse.ArgumentTypeError(f"{text} must lie between 8 and 4096")
    return side
