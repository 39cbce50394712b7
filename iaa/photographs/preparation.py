"""The subcommands of prepare_data.py that write CSVs: one for each dataset, and `check`."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from iaa.errors import InputError
from iaa.photographs import copies, inspection, labels, official, splits
from iaa.photographs.inspection import Finding
from iaa.photographs.labels import file_finder, write_csv
from iaa.photographs.official import PreparedLabels
from iaa.runtime.files import atomic_write, write_json
from iaa.runtime.signals import StopSignal

SPLITS = {
    "authors": "the authors' (val.csv and test.csv of their TANet; EAT's checkpoints were probably trained beside them, "
    "which nobody documented)",
    "official": "the official one",
    "workers": "by held-out workers",
    "column": "as the table says",
    "files": "as the files say",
    "random": "random, by the seed: a network from elsewhere may have been trained on its test photographs",
}


def prepare(options: argparse.Namespace) -> None:
    """A dataset's subcommand: read, split, check the photographs, write the CSVs and the summary, and print it."""
    out, images = options.out, options.images
    paths = {split: out / f"{split}.csv" for split in ("train", "val", "test")}
    inputs = ("labels", "scores", "val_labels", "test_labels")
    sources = [Path(path) for name in inputs if (path := getattr(options, name, None))]
    refuse_existing(paths.values(), sources, options.overwrite)
    prepared = read_official(options)
    split_at_random(prepared, options.val_share, getattr(options, "test_share", None), options.seed)
    out.mkdir(parents=True, exist_ok=True)
    paragraphs = []
    if images is None:
        prepared.notes.append("the pictures were not looked for: --images names their folder")
    elif options.no_check:
        drop_missing(prepared, images)
    else:
        names = use_names_on_disk(prepared, images)
        with StopSignal() as stop:
            findings = inspection.inspect_files(images, names, options.num_workers, stop, out)
        drop_unusable(prepared, findings)
        paragraphs.append(inspection.report(findings))
    write_splits(prepared.table, paths)
    summary = describe(prepared)
    test = prepared.files[(prepared.table["split"] == "test").to_numpy()]
    about = {"dataset": options.command, "seed": options.seed, "test_digest": splits.digest(test)}
    write_json(out / "summary.json", about | summary)
    text = "\n\n".join([*paragraphs, summary_text(summary)])
    with atomic_write(out / "summary.txt") as file:
        file.write(text + "\n")
    print(text)
    print(f"\nwritten to {out}: train.csv, val.csv, test.csv, summary.txt, summary.json")


def read_official(options: argparse.Namespace) -> PreparedLabels:
    """The official files of the subcommand's dataset, or any table."""
    if options.command == "ava":
        return official.read_ava(options.labels, options.split, options.test_list, options.skip_missing)
    if options.command == "flickr_aes":
        return official.read_flickr_aes(options.scores, options.workers)
    if options.command != "csv":
        return official.read_folder(options.command, options.labels, getattr(options, "theme", None))
    votes, scale = tuple(options.vote_columns or ()), (options.score_min, options.score_max)
    source = labels.LabelFormat(options.image_column, options.suffix, votes, scale)
    score_column = options.score_column or "score"
    paths = {"train": options.labels, "val": options.val_labels, "test": options.test_labels}
    paths = {split: path for split, path in paths.items() if path is not None}
    if len(paths) == 1:
        paths = {"": options.labels}
    return official.read_any_tables(paths, source, options.separator, score_column, options.split_column)


def refuse_existing(paths: Collection[Path], sources: Sequence[Path], overwrite: bool) -> None:
    """Raises InputError if CSVs would replace the official labels of `sources`, files or folders, or others without `overwrite`."""
    existing = [path for path in paths if path.exists()]
    folders = [source / folder for source in sources for folder in (".", "merge")]
    official_files = [*sources, *(folder / path.name for folder in folders for path in paths)]
    if endangered := {path.resolve() for path in official_files} & {path.resolve() for path in existing}:
        raise InputError(f"{min(endangered)}: is one of the official labels; give another --out")
    if existing and not overwrite:
        raise InputError(f"{existing[0]}: is there already; give --overwrite or another --out")


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


def use_names_on_disk(prepared: PreparedLabels, folder: str | os.PathLike) -> list[str]:
    """The name of each row's file as the folder has it: the case of its ending may differ from the labels'.

    Rows that name the same file as another row are dropped. Raises InputError if no file is there.
    """
    find = file_finder(folder)
    names = pd.Series([find(name) for name in prepared.files])
    if names.isna().all():
        raise InputError(f"{folder}: none of the {len(names)} pictures is there, as {prepared.files[0]}")
    names = names.fillna(prepared.files)
    if not prepared.label_format.suffix:
        prepared.table["image"] = names
        prepared.drop_shared(names)  # a.jpg and a.JPG may be one file
        prepared.keep(~prepared.files.duplicated(), "another row has the same picture")
        names = prepared.files
    return list(names)


def drop_missing(prepared: PreparedLabels, folder: str | os.PathLike) -> None:
    """Drop the rows whose photographs are not in the folder. Raises InputError if no photograph is there."""
    find = file_finder(folder)
    names = use_names_on_disk(prepared, folder)
    if missing := [name for name in names if find(name) is None]:
        prepared.notes.append(f"the first picture that is missing: {missing[0]}")
        prepared.keep(~np.isin(names, missing), "picture missing")


def drop_unusable(prepared: PreparedLabels, findings: Sequence[Finding]) -> None:
    """Drop the rows whose photographs would stop or spoil training. findings: one for each row."""
    kinds = np.array([finding.kinds if finding.verdict != "used" else "" for finding in findings])
    for kind in sorted(set(kinds) - {""}):
        prepared.keep(kinds != kind, f"picture {kind}")
        kinds = kinds[kinds != kind]


def write_splits(table: pd.DataFrame, paths: dict[str, Path]) -> None:
    """Write the CSV of each split. Raises InputError if one would be empty."""
    tables = {split: table[table["split"] == split].drop(columns="split") for split in paths}
    if empty := [split for split, rows in tables.items() if rows.empty]:
        raise InputError(f"no rows are left for {empty[0]}.csv; look at --images, the shares and the labels")
    for split, rows in tables.items():
        write_csv(paths[split], rows)


def describe(prepared: PreparedLabels) -> dict:
    """Rows read and dropped, and per split: count, mean, spread (standard deviation), range, share above the threshold."""
    scores = pd.Series(prepared.scores).groupby(prepared.table["split"])
    statistics = {
        "images": scores.size(),
        "mean": scores.mean(),
        "spread": scores.std(ddof=0),
        "lowest": scores.min(),
        "highest": scores.max(),
        "above_threshold": scores.agg(lambda values: (values > prepared.threshold).mean()),
    }
    return {
        "split": prepared.split,
        "rows_read": prepared.rows_read,
        "dropped": dict(prepared.dropped),
        "rows_kept": len(prepared.table),
        "threshold": prepared.threshold,
        "splits": pd.DataFrame(statistics).loc[["train", "val", "test"]].to_dict("index"),
        "notes": prepared.notes,
    }


def summary_text(summary: dict) -> str:
    """The summary that `describe` made, for a terminal."""
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
    find = file_finder(options.images)
    tables, files = {}, {}  # by CSV: its rows, and the names of their pictures on the disk
    for path in options.csv:
        table = tables[path] = labels.read_table(path)
        label_format = labels.name_format(table)
        labels.require_columns(path, table, [label_format.image_column])
        files[path] = [find(name) or name for name in labels.read_names(path, table, label_format)]
    names = list(dict.fromkeys(name for csv_names in files.values() for name in csv_names))
    if not tables:
        names, others = inspection.find_pictures(options.images)
        if others:
            print(f"{others} files whose names do not end as a picture's are not looked at")
        if not names:
            raise InputError(f"{options.images}: no pictures in it")
    options.out.mkdir(parents=True, exist_ok=True)
    in_two_splits = pd.DataFrame()
    with StopSignal() as stop:
        findings = inspection.inspect_files(options.images, names, options.num_workers, stop, options.out)
        if options.copies:
            signatures = copies.signatures(options.images, names, options.num_workers, stop)
            by_csv = {path.name: csv_names for path, csv_names in files.items()}
            in_two_splits = copies.find_copies(by_csv, signatures, options.near)
            write_csv(options.out / "copies.csv", in_two_splits)
    print(inspection.report(findings))
    print(f"each of them: {options.out / 'pictures.csv'}")
    if options.copies:
        print(copies.report(in_two_splits))
        print(f"each of them: {options.out / 'copies.csv'}")
    bad = {finding.image for finding in findings if finding.verdict != "used"}
    if not options.clean:
        return int(bool(bad) or not in_two_splits.empty)
    options.clean.mkdir(parents=True, exist_ok=True)
    copied = set()
    if options.copies:
        copied.update(in_two_splits["image"][in_two_splits["csv"] == "train.csv"])
        copied.update(in_two_splits["copy"][in_two_splits["copy_csv"] == "train.csv"])
    for path, table in tables.items():
        removed = bad | copied if path.name == "train.csv" else bad
        rows = table[[name not in removed for name in files[path]]]
        write_csv(options.clean / path.name, rows)
        warning = "" if len(rows) else "; none is left, and training refuses an empty CSV"
        print(f"{options.clean / path.name}: {len(rows)} of {len(table)} rows{warning}")
    return 0
