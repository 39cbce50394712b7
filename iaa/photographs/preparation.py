"""The subcommands of prepare_data.py that write CSVs: one for each dataset, and `check`."""

from __future__ import annotations

import argparse
import math
import os
import shlex
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from iaa.errors import InputError
from iaa.photographs import copies, inspection, official, splits
from iaa.photographs.inspection import Finding
from iaa.photographs.labels import LabelFormat, mean_votes, read_labels
from iaa.photographs.official import PreparedLabels
from iaa.photographs.picture_files import describe_endings, file_finder, find_pictures
from iaa.photographs.rated_photographs import read_stars
from iaa.photographs.tables import read_table, write_csv
from iaa.runtime.files import atomic_write, write_json
from iaa.runtime.program import PlainText
from iaa.runtime.signals import StopSignal

NAMES = ("train", "val", "test")
SPLITS = {
    "authors": "the authors' (val.csv and test.csv of their TANet; EAT's checkpoints were probably trained beside them, "
    "which nobody documented)",
    "official": "the official one",
    "workers": "by held-out workers",
    "column": "as the table says",
    "files": "as the files say",
    "list": "by --test_list",
    "random": "random, by the seed: a network from elsewhere may have been trained on its test photographs",
}


def prepare(options: argparse.Namespace) -> None:
    """A dataset's subcommand: read, split, check the photographs, write the CSVs and the summary, and print it."""
    out, images = options.out, options.images
    inputs = (getattr(options, name, None) for name in ("labels", "val_labels", "test_labels", "scores"))
    refuse_existing(out, options.overwrite, [Path(path) for path in (*inputs, *options.test_list) if path])
    prepared = read_official(options)
    if options.test_list:
        source = options.scores if options.command == "flickr_aes" else options.labels
        official.split_by_lists(prepared, options.test_list, source, options.skip_missing)
    split_at_random(prepared, options.val_share, getattr(options, "test_share", None), options.seed)
    out.mkdir(parents=True, exist_ok=True)
    paragraphs = []
    if images is None:
        prepared.notes.append("the pictures were not looked for: --images names their folder")
    else:
        names = drop_missing(prepared, images)
        if not options.no_check:
            with StopSignal() as stop:
                findings = inspection.inspect_files(images, names, options.num_workers, stop, out)
            drop_unusable(prepared, findings)
            paragraphs.append(inspection.report(findings))
    write_splits(prepared.table, out)
    test = prepared.files[(prepared.table["split"] == "test").to_numpy()]
    dataset = "csv" if options.command in ("oasis", "xmp") else options.command
    about = {"dataset": dataset, "seed": options.seed, "test_digest": splits.digest(test)}
    if dataset == "csv" and not prepared.label_format.vote_columns:
        about["score_range"] = list(prepared.label_format.scale)
    summary = summarise(prepared)
    write_json(out / "summary.json", about | summary)
    text = "\n\n".join([*paragraphs, summary_text(summary)])
    with atomic_write(out / "summary.txt") as file:
        PlainText(file).write(text + "\n")
    print(text)
    print(f"\nwritten to {out}: train.csv, val.csv, test.csv, summary.txt, summary.json")
    command = ["python", "main_nni.py", "--dataset", dataset, "--path_to_images", images or "FOLDER"]
    command += ["--path_to_save_csv", str(out)]
    for name, value in zip(("--score_min", "--score_max"), about.get("score_range", ()), strict=False):
        command += [name, f"{value:.10g}"]
    if options.command == "xmp":  # one person's stars are few: enough for the network's last layer
        command += ["--path_to_model_weight", "FILE", "--freeze_backbone"]
    print(f"next: {shlex.join(command)}")


def read_official(options: argparse.Namespace) -> PreparedLabels:
    """The official files of the subcommand's dataset, any table, or stars of photographs."""
    if options.command == "ava":
        return official.read_ava(options.labels, options.split, options.skip_missing)
    if options.command == "flickr_aes":
        return official.read_flickr_aes(options.scores, options.workers)
    if options.command == "xmp":
        return read_stars(options.images)
    if options.command == "oasis":
        return official.read_oasis(options.labels, options.votes, options.categories)
    if options.command != "csv":
        return official.read_folder(options.command, options.labels)
    votes, scale = tuple(options.vote_columns or ()), (options.score_min, options.score_max)
    source = LabelFormat(options.image_column, options.suffix, votes, scale)
    others = {"val": options.val_labels, "test": options.test_labels}
    paths = {split: path for split, path in others.items() if path is not None}
    paths = {"train" if paths else "": options.labels} | paths
    score_column = options.score_column or "score"
    return official.read_any_tables(paths, source, options.separator, score_column, options.split_column)


def refuse_existing(out: Path, overwrite: bool, inputs: Sequence[Path]) -> None:
    """Raises InputError if CSVs in `out` would be replaced without `overwrite`; with it, if they are inputs or not prepared ones."""
    for path in (out / f"{split}.csv" for split in NAMES):
        if path.exists() and path.resolve() in [source.resolve() for source in inputs]:
            raise InputError(f"{path}: is one of the labels to be read; give another --out")
        if path.exists() and not overwrite:
            raise InputError(f"{path}: is there already; give --overwrite or another --out")
        if path.exists() and not (out / "summary.json").exists():
            raise InputError(f"{path}: prepare_data.py did not write it; give another --out")


def split_at_random(prepared: PreparedLabels, val_share: float, test_share: float | None, seed: int) -> None:
    """Fill in the splits that the official files leave open. The seed alone decides, even if photographs are missing."""
    column = prepared.table["split"].to_numpy(object)
    shares = {} if (column == "val").any() else {"val": val_share}
    if not (column == "test").any():
        shares["test"] = test_share
    pool = np.flatnonzero((column == "") | (column == "train"))
    order = np.random.default_rng(seed).permutation(pool)
    column[pool] = "train"
    if shares:
        held = math.ceil(round(sum(shares.values()) * len(pool), 6))
        val = math.floor(held * shares.get("val", 0) / sum(shares.values()))
        column[order[:val]] = "val"
        column[order[val:held]] = "test" if "test" in shares else "val"
    prepared.table["split"] = column


def drop_missing(prepared: PreparedLabels, folder: str | os.PathLike) -> pd.Series:
    """Drop the rows whose photographs are not in the folder, or are another row's. Raises InputError if no photograph is there.

    Returns the name of each row's file as the folder has it: the case of its ending may differ from the labels'.
    """
    files = prepared.files
    names = files.map(file_finder(folder))
    is_there = names.notna()
    if not is_there.any():
        raise InputError(f"{folder}: none of the {len(names)} pictures is there, as {files[0]}")
    if not is_there.all():
        prepared.notes.append(f"the first picture that is missing: {files[~is_there].iloc[0]}")
        prepared.keep(is_there, "picture missing")
        names = names[is_there].reset_index(drop=True)
    if prepared.label_format.suffix:
        return names
    prepared.table["image"] = names
    prepared.drop_shared()  # a.jpg and a.JPG may be one file
    prepared.keep(~prepared.files.duplicated(), "another row has the same picture")
    return prepared.files


def drop_unusable(prepared: PreparedLabels, findings: Sequence[Finding]) -> None:
    """Drop the rows whose photographs would stop or spoil training. findings: one for each row."""
    kinds = np.array([finding.kinds if finding.verdict != "used" else "" for finding in findings])
    for kind in sorted(set(kinds) - {""}):
        prepared.keep(kinds != kind, f"picture {kind}")
        kinds = kinds[kinds != kind]


def write_splits(table: pd.DataFrame, out: Path) -> None:
    """Write the CSV of each split. Raises InputError if one would be empty."""
    tables = {split: table[table["split"] == split].drop(columns="split") for split in NAMES}
    if empty := [split for split, rows in tables.items() if rows.empty]:
        raise InputError(f"no rows are left for {empty[0]}.csv; look at --images, the shares and the labels")
    for split, rows in tables.items():
        write_csv(out / f"{split}.csv", rows)


def summarise(prepared: PreparedLabels) -> dict:
    """Rows read and dropped, and per split: count, mean, spread (standard deviation), range, share above the threshold."""
    table, votes = prepared.table, list(prepared.label_format.vote_columns)
    low, high = prepared.label_format.scale
    if votes:
        scores, threshold = mean_votes(table[votes].to_numpy(float)), prepared.label_format.threshold
    else:
        scores, threshold = table["score"], low + prepared.label_format.threshold * (high - low)
    by_split = pd.Series(scores).groupby(table["split"])
    statistics = {
        "images": by_split.size(),
        "mean": by_split.mean(),
        "spread": by_split.std(ddof=0),
        "lowest": by_split.min(),
        "highest": by_split.max(),
        "above_threshold": pd.Series(scores > threshold).groupby(table["split"]).mean(),
    }
    return {
        "split": prepared.split,
        "rows_read": prepared.rows_read,
        "dropped": dict(prepared.dropped),
        "rows_kept": len(table),
        "threshold": threshold,
        "splits": pd.DataFrame(statistics).loc[list(NAMES)].to_dict("index"),
        "notes": prepared.notes,
    }


def summary_text(summary: dict) -> str:
    """The summary that `summarise` made, for a terminal."""
    above = f"above {summary['threshold']:g}"
    table = pd.DataFrame.from_dict(summary["splits"], "index").rename(columns={"above_threshold": above})
    lines = [
        f"{summary['rows_read']} rows read, {summary['rows_kept']} kept; split: {SPLITS[summary['split']]}",
        *(f"  {count} dropped: {reason}" for reason, count in summary["dropped"].items()),
        table.to_string(float_format="{:.3f}".format, formatters={above: "{:.1%}".format}),
        *summary["notes"],
        "splits were compared by the pictures' names; `prepare_data.py check --copies` compares the pictures",
    ]
    return "\n".join(lines)


def check(options: argparse.Namespace) -> int:
    """The subcommand `check`; returns 1 if it found bad photographs or copies and removed none."""
    images, out, clean = options.images, options.out, options.clean
    find = file_finder(images)
    tables, files = {}, {}  # by CSV: its rows, and the names of their pictures on the disk
    for path in options.csv:
        tables[path] = read_table(path)
        files[path] = [find(name) or name for name in read_labels(path, None).images.tolist()]
    names = list(dict.fromkeys(name for csv_names in files.values() for name in csv_names))
    if not tables:
        names, others = find_pictures(images)
        if others:
            words = "files whose names do not end as a picture's are not looked at"
            print(f"{others.total()} {words}: {describe_endings(others)}")
        if not names:
            raise InputError(f"{images}: no pictures in it")
    out.mkdir(parents=True, exist_ok=True)
    with StopSignal() as stop:
        findings = inspection.inspect_files(images, names, options.num_workers, stop, out)
        print(inspection.report(findings))
        print(f"each of them: {out / 'pictures.csv'}")
        if options.copies:
            hashes = copies.perceptual_hashes(images, names, options.num_workers, stop)
            by_csv = {path.name: csv_names for path, csv_names in files.items()}
            pairs = copies.find_copies(by_csv, hashes, options.near)
            write_csv(out / "copies.csv", pairs)
            print(copies.report(pairs))
            print(f"each of them: {out / 'copies.csv'}")
    bad = {finding.image for finding in findings if finding.verdict != "used"}
    if not clean:
        return int(bool(bad) or (options.copies and not pairs.empty))
    clean.mkdir(parents=True, exist_ok=True)
    for path, table in tables.items():
        removed = set(bad)
        if options.copies and path.name == "train.csv":
            removed.update(pairs["image"][pairs["csv"] == path.name])
            removed.update(pairs["copy"][pairs["copy_csv"] == path.name])
        rows = table[[name not in removed for name in files[path]]]
        write_csv(clean / path.name, rows, sep=table.attrs["separator"])
        warning = "" if len(rows) else "; none is left, and training refuses an empty CSV"
        print(f"{clean / path.name}: {len(rows)} of {len(table)} rows{warning}")
    return 0
