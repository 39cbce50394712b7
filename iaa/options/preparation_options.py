"""The command line of prepare_data.py."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from iaa.runtime.command_line import Table, subcommand_parser
from option import CPUS, Option


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The options and the `command`; exits with status 2 if they are wrong."""
    about = "From the official downloads to what training reads: CSVs, checked photographs."
    parser = subcommand_parser("prepare_data.py", about, COMMANDS)
    options = parser.parse_args(argv)
    if options.command == "ava" and options.split is None:
        options.split = "official" if options.test_list else "authors"
    if options.command == "csv" and options.separator in ("tab", "\\t"):
        options.separator = "\t"
    for problem in _problems(options):
        parser.error(problem)
    return options


def _problems(options: argparse.Namespace) -> Iterator[str]:
    """Contradictions between options, and folders that do not exist."""
    if options.images is not None and not Path(options.images).is_dir():
        yield f"{options.images}: no such folder; --images names the folder of the pictures"
    if options.command == "ava" and (options.split == "official") != bool(options.test_list):
        yield "--split official and --test_list belong together; give both or neither"
    if options.command == "flickr_aes" and options.workers and options.test_list:
        yield "--workers and --test_list exclude each other; leave one out"
    if options.command == "csv":
        if options.test_list and (options.split_column or options.val_labels or options.test_labels):
            yield "--test_list is for one table; leave --split_column, --val_labels and --test_labels out"
        if options.split_column and (options.val_labels or options.test_labels):
            yield "--split_column is for one table; leave --val_labels and --test_labels out"
        if options.score_column and options.vote_columns:
            yield "--score_column and --vote_columns exclude each other; leave one out"
        if options.score_min >= options.score_max:
            yield f"--score_min {options.score_min:g} is not below --score_max {options.score_max:g}"
        if options.separator and (len(options.separator) != 1 or not options.separator.isascii()):
            yield f"--separator {options.separator!r} is not one plain character, or tab"
    if options.command == "check":
        if options.clean and not options.csv:
            yield "--clean needs --csv, the CSVs to clean"
        if (options.clean or options.copies) and len({path.name for path in options.csv}) < len(options.csv):
            yield "--csv: two files have the same name; give those of one dataset"
        if options.copies and len(options.csv) < 2:
            yield "--copies needs --csv with the CSVs of two splits or more, to compare"
        for path in options.csv if options.clean else ():
            if (options.clean / path.name).exists():
                yield f"{options.clean / path.name}: is there already; give another --clean"


WORKERS = Option("num_workers", int, CPUS, "processes that read pictures (default: all cores)")


# fmt: off
def dataset(labels: str, val_share: float, test_share: float | None, *options: Option, name: str = "labels") -> Table:
    """The table of a dataset's subcommand. labels: help of the option `name`, which takes its labels; options: only this dataset's."""
    images = Option("images", str, None, "folder of the pictures; without it they are not looked for", metavar="FOLDER")
    test = Option("test_share", float, test_share, "share of rows for test.csv, if there is no official one", positive=True, high=0.5)
    return {
        "": (
            Option(name, str, None, labels, metavar="FOLDER" if labels.startswith("folder") else "FILE", required=True),
            *([] if name == "images" else [images]),
            Option("out", Path, None, "folder for train.csv, val.csv, test.csv and the summary", metavar="FOLDER", required=True),
        ),
        **({"this dataset's": options} if options else {}),
        "splits and pictures": (
            Option("seed", int, 0, "seed of random splits"),
            Option("val_share", float, val_share, "share of rows for val.csv, if the official files do not say", positive=True, high=0.5),
            *([test] if test_share else []),
            Option("test_list", str, [], "names of the test photographs: a text file, a CSV or a JSON list of records; the others train and validate; if a list has `train` in its name, only its photographs do", metavar="FILE", nargs="+"),
            Option("skip_missing", bool, False, "leave out names of lists that the labels lack"),
            Option("no_check", bool, False, "check only that the pictures exist; do not decode them"),
            Option("overwrite", bool, False, "replace the CSVs in --out"),
            WORKERS,
        ),
    }


COMMANDS: dict[str, tuple[str, Table]] = {
    "ava": ("AVA, from AVA.txt", dataset("the official AVA.txt", 0.05, 0.05,
        Option("split", str, None, "test set: the list that EAT's authors published; AVA's own, by --test_list generic_test.jpgl; or a random one by --seed (default: official with --test_list, else authors)", choices=("authors", "official", "random")),
    )),
    "tad66k": ("TAD66K", dataset("folder of the official labels, with merge/", 0.1, None)),
    "flickr_aes": ("FLICKR-AES", dataset("the official FLICKR-AES_image_score.txt", 0.1, 0.1,
        Option("workers", str, None, "the official FLICKR-AES_image_labeled_by_each_worker.csv: the usual split, by held-out workers (default: a random split by --seed)", metavar="FILE"),
        name="scores",
    )),
    "aadb": ("AADB", dataset("folder of the official imgList...Regression_score.txt", 0.1, None)),
    "para": ("PARA", dataset("folder of the official PARA-GiaaTrain.csv and PARA-GiaaTest.csv", 0.1, None)),
    "oasis": ("OASIS, ratings of beauty, for --dataset csv", dataset("the means_per_image.csv of Brielmann and Pelli", 0.1, 0.1,
        Option("votes", str, None, "their corrData.mat, for counts of votes (default: the mean, as a score from 1 to 7)", metavar="FILE"),
        Option("categories", str, [], "only the photographs of these, as Scene Object Animal (default: all; some pictures show violence or nudity)", nargs="+"),
    )),
    "csv": ("any other table; options name its columns", dataset("the table; with --test_labels that of train.csv", 0.1, 0.1,
        Option("val_labels", str, None, "the table of val.csv, if it is another file", metavar="FILE"),
        Option("test_labels", str, None, "the table of test.csv, if it is another file", metavar="FILE"),
        Option("separator", str, None, "character between its columns, or tab (default: comma, semicolon, tab or |, as its header has)", metavar="C"),
        Option("image_column", str, "image", "column of the picture's file name"),
        Option("suffix", str, "", "appended to the names, as .jpg (default: nothing)"),
        Option("score_column", str, None, "column of the score (default: score)"),
        Option("vote_columns", str, None, "instead of a score: columns with counts of votes, lowest level first", nargs="+"),
        Option("split_column", str, None, "column with train, val or test (default: a random split by --seed)"),
        Option("score_min", float, 0.0, "lowest possible score"),
        Option("score_max", float, 1.0, "highest possible score"),
    )),
    "xmp": ("the stars that a person gave to photographs", dataset("folder of the photographs, with stars in XMP sidecars or in JPEGs", 0.1, 0.1, name="images")),
    "check": ("decode every picture and say what training will do with it", {"": (
        Option("images", str, None, "folder of the pictures", metavar="FOLDER", required=True),
        Option("csv", Path, [], "check only the pictures that these CSVs name (default: all in the folder)", nargs="+"),
        Option("out", Path, None, "folder for pictures.csv", metavar="FOLDER", required=True),
        Option("clean", Path, None, "write the CSVs to this folder, without the pictures that stop or spoil training, and train.csv without the copies of --copies", metavar="FOLDER"),
        Option("copies", bool, False, "also find pictures that are in two splits, perhaps under two names, by their perceptual hashes"),
        Option("near", int, 4, "--copies: largest number of differing bits (of 64) between the perceptual hashes of copies"),
        WORKERS,
    )}),
}
# fmt: on
