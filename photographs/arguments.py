"""The command line of prepare_data.py."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from commands.parser import Table, with_commands
from option import CPUS, DATASETS, Option
from photographs.copies import NEAR


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The options and the `command`; exits with status 2 where they are wrong."""
    about = "From the official downloads to what training reads: CSVs, a look at every picture, a cache."
    return with_commands("prepare_data.py", about, COMMANDS).parse_args(argv)


def share(text: str) -> float:
    """For argparse's `type`: a part of a whole, below a half."""
    with suppress(ValueError):
        if 0 < (value := float(text)) < 0.5:
            return value
    raise argparse.ArgumentTypeError(f"{text} must lie between 0 and 0.5")


WORKERS = Option("num_workers", int, CPUS, "processes that read pictures (default: all cores)")


# fmt: off
def dataset(labels: str, val_share: float, test_share: float | None, *own: Option, name: str = "labels") -> Table:
    """The table of a dataset's subcommand: its labels, its `own` options, and those that all of them have."""
    test = Option("test_share", share, test_share, "share for test.csv, where there is no official one")
    return {
        "": (
            Option(name, str, None, labels, metavar="FOLDER" if labels.startswith("folder") else "FILE", required=True),
            Option("images", str, None, "folder of the pictures; without it they are not looked for", metavar="FOLDER"),
            Option("out", Path, None, "where train.csv, val.csv, test.csv and the summary go", metavar="FOLDER", required=True),
        ),
        **({"this dataset's": own} if own else {}),
        "splits and pictures": (
            Option("seed", int, 0, "seed of random splits"),
            Option("val_share", share, val_share, "share for val.csv, where the official files do not say"),
            *([test] if test_share else []),
            Option("no_check", bool, False, "only look whether the pictures are there; decode none"),
            Option("overwrite", bool, False, "replace the CSVs in --out"),
            WORKERS,
        ),
    }


COMMANDS: dict[str, tuple[str, Table]] = {
    "ava": ("AVA, from AVA.txt", dataset("the official AVA.txt", 0.05, 0.05,
        Option("split", str, None, "whose test set: the list that EAT's authors published; AVA's own, by --test_list; or a random one by seed (default: official with --test_list, else authors)", choices=("authors", "official", "random")),
        Option("test_list", str, [], "--split official: AVA's lists of image ids, as generic_test.jpgl; one with `train` in its name, as generic_ss_train.jpgl, has the only rows to train on", metavar="FILE", nargs="+"),
        Option("skip_missing", bool, False, "go on without ids of the lists that AVA.txt lacks"),
    )),
    "tad66k": ("TAD66K, or one of its themes", dataset("folder of the official labels, with merge/ and unmerge/", 0.1, None,
        Option("theme", str, None, "one of the themes of unmerge/ (default: merge/, all of them)"),
    )),
    "flickr_aes": ("FLICKR-AES", dataset("the official FLICKR-AES_image_score.txt", 0.1, 0.1,
        Option("workers", str, None, "the official FLICKR-AES_image_labeled_by_each_worker.csv: the usual split, by held-out workers (default: a random one by seed)", metavar="FILE"),
        name="scores",
    )),
    "aadb": ("AADB", dataset("folder of the official imgList...Regression_score.txt", 0.1, None)),
    "para": ("PARA", dataset("folder of the official PARA-GiaaTrain.csv and PARA-GiaaTest.csv", 0.1, None)),
    "csv": ("any other table, its columns named by options", dataset("the table", 0.1, 0.1,
        Option("separator", str, ",", "what separates its columns; tab for a tab (default: a comma)", metavar="C"),
        Option("image_column", str, "image", "column of the picture's file name"),
        Option("suffix", str, "", "added to the names, as .jpg (default: nothing)"),
        Option("score_column", str, None, "column of the score (default: score)"),
        Option("vote_columns", str, None, "instead: columns of the votes, lowest level first", nargs="+"),
        Option("split_column", str, None, "column that says train, val or test (default: random by seed)"),
        Option("score_min", float, 0.0, "lowest possible score"),
        Option("score_max", float, 1.0, "highest possible score"),
    )),
    "check": ("decode every picture and say what training will do with it; goes on where it was interrupted", {"": (
        Option("images", str, None, "folder of the pictures", metavar="FOLDER", required=True),
        Option("csv", Path, [], "look at the pictures named here only (default: all in the folder)", nargs="+"),
        Option("out", Path, None, "where pictures.csv goes", metavar="FOLDER", required=True),
        Option("clean", Path, None, "write the CSVs there without the pictures that stop or spoil training, and train.csv without the copies of --copies", metavar="FOLDER"),
        Option("copies", bool, False, "also look for the same picture in two splits under two names: same bytes, same pixels, or nearly the same look"),
        Option("near", int, NEAR, "--copies: perceptual hashes (64 bits) that differ in no more bits are copies"),
        WORKERS,
    )}),
    "cache": ("decode and resize the pictures once, for `main_nni.py --cache`; verifies and repairs a cache", {"": (
        Option("dataset", str, None, "whose CSVs they are", choices=[name for name in DATASETS if name != "demo"], required=True),
        Option("images", str, None, "folder of the pictures", metavar="FOLDER", required=True),
        Option("csv", Path, None, "folder of train.csv, val.csv and test.csv", metavar="FOLDER", required=True),
        Option("out", str, None, "the cache", metavar="FOLDER", required=True),
        Option("size", int, 224, "side of the network's input", low=8, high=4096),
        Option("decode", str, "auto", "as in main_nni.py", choices=("auto", "pil", "fast")),
        Option("released_protocol", bool, False, "as in main_nni.py: PIL's pixels in training, too"),
        Option("val_share", share, 0.1, "as in main_nni.py, where there is no val.csv"),
        Option("seed", int, 0, "as in main_nni.py"),
        WORKERS,
    )}),
}
# fmt: on
