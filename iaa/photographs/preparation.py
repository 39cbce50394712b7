"""The subcommands of prepare_data.py that write CSVs: one for each dataset, and `check`."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from iaa.errors import InputError
from iaa.photographs import copies, inspection, official, splits, summary
from iaa.photographs.labels import file_finder
from iaa.photographs.official import PreparedLabels
from iaa.runtime.files import atomic_write, write_json
from iaa.runtime.signals import StopSignal

SPLITS = ("train", "val", "test")


def prepare(options: argparse.Namespace) -> None:
    """A dataset's subcommand: read, split, check the photographs, write the CSVs and the summary, and print it."""
    out, test_share = options.out, getattr(options, "test_share", None)
    paths = {split: out / f"{split}.csv" for split in SPLITS}
    labels = options.scores if options.command == "flickr_aes" else options.labels
    refuse_existing(list(paths.values()), Path(labels), options.overwrite)
    prepared = read_labels(options)
    split_at_random(prepared, options.val_share, test_share, options.seed)
    out.mkdir(parents=True, exist_ok=True)
    paragraphs = []
    if options.images is None:
        prepared.notes.append("the pictures were not looked for: --images names their folder")
    elif options.no_check:
        drop_missing(prepared, options.images)
    else:
        with StopSignal() as watch:
            findings = drop_unusable(prepared, options.images, options.num_workers, watch)
        inspection.write_findings(findings, out / "pictures.csv")
        paragraphs.append(inspection.report(findings))
    write_splits(prepared.table, paths)
    statistics = summary.describe(prepared)
    test = prepared.files[(prepared.table["split"] == "test").to_numpy()]
    about = {"dataset": options.command, "seed": options.seed, "test_digest": splits.digest(test)}
    write_json(out / "summary.json", about | statistics)
    paragraphs.append(summary.as_text(statistics))
    with atomic_write(out / "summary.txt") as file:
        file.write("\n\n".join(paragraphs) + "\n")
    print("\n\n".join(paragraphs))
    written = [*(path.name for path in paths.values()), "summary.txt", "summary.json"]
    print(f"\nwritten to {out}: {', '.join(written)}")


def read_labels(options: argparse.Namespace) -> PreparedLabels:
    """The official files of the subcommand's dataset, or any table."""
    if options.command == "ava":
        return official.read_ava(options.labels, options.split, options.test_list, options.skip_missing)
    if options.command == "flickr_aes":
        return official.read_flickr_aes(options.scores, options.workers)
    if options.command == "csv":
        return official.read_any_table(
            options.labels,
            options.separator,
            options.image_column,
            options.suffix,
            options.score_column or "score",
            options.vote_columns or (),
            options.split_column,
            (options.score_min, options.score_max),
        )
    return official.read_folder(options.command, options.labels, getattr(options, "theme", None))


def refuse_existing(paths: Sequence[Path], labels: Path, overwrite: bool) -> None:
    """Raises InputError if CSVs would replace the official `labels`, a file or a folder, or others without `overwrite`."""
    existing = [path for path in paths if path.exists()]
    official_files = [
        labels,
        *(folder / path.name for folder in (labels, labels / "merge") for path in paths),
    ]
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


def drop_missing(prepared: PreparedLabels, folder: str | os.PathLike) -> None:
    """Drop the rows whose photographs are not in the folder. Raises InputError if no photograph is there."""
    names = use_names_on_disk(prepared, folder)
    find = file_finder(folder)
    missing = np.array([find(name) is None for name in names])
    if missing.any():
        prepared.notes.append(f"the first picture that is missing: {names[missing.argmax()]}")
    prepared.keep(~missing, "picture missing")


def drop_unusable(
    prepared: PreparedLabels, folder: str | os.PathLike, num_workers: int, watch: StopSignal
) -> list[inspection.Finding]:
    """Drop the rows whose photographs would stop or spoil training. Returns the findings of all photographs.

    Raises InputError if no photograph is in the folder, Interrupted when a signal comes.
    """
    names = use_names_on_disk(prepared, folder)
    findings = inspection.inspect_files(folder, names, num_workers, watch)
    kinds = np.array([finding.kinds if finding.verdict != "used" else "" for finding in findings])
    for kind in sorted(set(kinds) - {""}):
        prepared.keep(kinds != kind, f"picture {kind}")
        kinds = kinds[kinds != kind]
    return findings


def use_names_on_disk(prepared: PreparedLabels, folder: str | os.PathLike) -> list[str]:
    """The name of each row's file as the folder has it: the case of its ending may differ from the labels'.

    Rows that name the same file as another row are dropped. Raises InputError if no file is there.
    """
    find = file_finder(folder)
    found = [find(name) for name in prepared.files]
    if not any(found):
        none = f"none of the {len(found)} pictures is there, as {prepared.files[0]}"
        raise InputError(f"{folder}: {none}")
    names = pd.Series(found).fillna(prepared.files)
    if not prepared.label_format.suffix:
        prepared.table["image"] = names
        prepared.drop_shared(names)  # a.jpg and a.JPG may be one file
        prepared.keep(~prepared.files.duplicated(), "another row has the same picture")
        names = prepared.files
    return list(names)


def write_splits(table: pd.DataFrame, paths: dict[str, Path]) -> None:
    """Write the CSV of each split. Raises InputError if one would be empty."""
    tables = {split: table[table["split"] == split].drop(columns="split") for split in paths}
    if empty := [split for split, rows in tables.items() if rows.empty]:
        raise InputError(f"no rows are left for {empty[0]}.csv; look at --images, the shares and the labels")
    for split, rows in tables.items():
        with atomic_write(paths[split]) as file:
            rows.to_csv(file, index=False)


def check(options: argparse.Namespace) -> int:
    """The subcommand `check`; returns 1 if it found bad photographs or copies and removed none."""
    tables = {path: inspection.read_named(path) for path in options.csv}
    find = file_finder(options.images)
    for table in tables.values():
        table["_file"] = [find(name) or name for name in table["_file"]]
    names = list(dict.fromkeys(name for table in tables.values() for name in table["_file"]))
    if not tables:
        names, others = inspection.pictures_in(options.images)
        if others:
            print(f"{others} files whose names do not end as a picture's are not looked at")
        if not names:
            raise InputError(f"{options.images}: no pictures in it")
    options.out.mkdir(parents=True, exist_ok=True)
    found: list[copies.Copy] = []
    with StopSignal() as watch:
        findings = inspection.inspect_files(options.images, names, options.num_workers, watch)
        inspection.write_findings(findings, options.out / "pictures.csv")
        if options.copies:
            signatures = copies.signatures(options.images, names, options.num_workers, watch)
            by_csv = {path.name: list(table["_file"]) for path, table in tables.items()}
            found = copies.find_copies(by_csv, signatures, options.near)
            copies.write_copies(found, options.out / "copies.csv")
    print(inspection.report(findings))
    print(f"each of them: {options.out / 'pictures.csv'}")
    if options.copies:
        print(copies.report(found))
        print(f"each of them: {options.out / 'copies.csv'}")
    bad = {finding.image for finding in findings if finding.verdict != "used"}
    if options.clean:
        in_train = copies.images_of(found, "train.csv")
        print("\n".join(inspection.write_clean(tables, bad, options.clean, in_train)))
        return 0
    return int(bool(bad or found))
