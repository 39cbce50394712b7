"""From the official downloads to what training reads: CSVs, a look at every picture, a cache. Try `--help`."""

from __future__ import annotations

import argparse
import logging
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from commands.errors import guarded
from commands.files import atomic_write, write_json
from commands.signals import Watch
from dataset import Transform, read_splits
from option import InputError
from photographs import copies, official, pictures, splits, summary
from photographs.arguments import parse
from photographs.cache import Cache, repair
from photographs.labels import finder
from photographs.official import Prepared
from training.build import pick_decoders

log = logging.getLogger("eat")

GOES_ON = "the same command goes on where it stopped"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand; returns the exit status: 0, 1 if `check` found pictures to remove, 2 for bad input, 128 and more."""
    options = parse(argv)

    def work() -> int | None:
        if options.images is not None and not Path(options.images).is_dir():
            raise InputError(f"{options.images}: no such folder; --images names the folder of the pictures")
        return {"check": check, "cache": fill_cache}.get(options.command, prepare)(options)

    return guarded("prepare_data.py", work, GOES_ON)


def read_labels(options: argparse.Namespace) -> Prepared:
    """The official files of a dataset, or any table."""
    if options.command == "ava":
        split = options.split or ("official" if options.test_list else "authors")
        if (split == "official") != bool(options.test_list):
            raise InputError("--split official and --test_list belong together; give both or neither")
        return official.read_ava(options.labels, split, options.test_list, options.skip_missing)
    if options.command == "flickr_aes":
        return official.read_flickr_aes(options.scores, options.workers)
    if options.command == "csv":
        return official.read_any(options)
    return official.read_folder(options.command, options.labels, getattr(options, "theme", None))


def prepare(options: argparse.Namespace) -> None:
    """A dataset's subcommand: read, split, look at the pictures, write the CSVs and the summary, and print it."""
    out = options.out
    paths = {split: out / f"{split}.csv" for split in ("train", "val", "test")}
    refuse_what_is_there(options, list(paths.values()))
    prepared = read_labels(options)
    split_at_random(prepared, options.val_share, getattr(options, "test_share", None), options.seed)
    out.mkdir(parents=True, exist_ok=True)
    text = []
    if options.images is None:
        prepared.notes.append("the pictures were not looked for: --images names their folder")
    else:
        with Watch() as watch:
            text += look(prepared, options, out / "pictures.csv", watch)
    write_splits(prepared.table, paths)
    found = summary.describe(prepared)
    about = {"dataset": options.command, "seed": options.seed}
    test = prepared.files[(prepared.table["split"] == "test").to_numpy()]
    write_json(out / "summary.json", about | {"test_digest": splits.digest(test), **found})
    text.append(summary.as_text(found))
    with atomic_write(out / "summary.txt") as file:
        file.write("\n\n".join(text) + "\n")
    summary.draw(prepared, f"{options.command}: {found['rows_kept']} images", out / "histogram.png")
    print("\n\n".join(text))
    written = [*(path.name for path in paths.values()), "summary.txt", "summary.json", "histogram.png"]
    print(f"\nwritten to {out}: {', '.join(written)}")


def refuse_what_is_there(options: argparse.Namespace, paths: list[Path]) -> None:
    """Raises InputError for CSVs that would replace official labels, or others without --overwrite."""
    given = Path(options.scores if options.command == "flickr_aes" else options.labels)
    inputs = [given, *(folder / path.name for folder in (given, given / "merge") for path in paths)]
    there = [path for path in paths if path.exists()]
    if mine := {path.resolve() for path in inputs} & {path.resolve() for path in there}:
        raise InputError(f"{min(mine)}: is one of the official labels; give another --out")
    if there and not options.overwrite:
        raise InputError(f"{there[0]}: is there already; give --overwrite or another --out")


def write_splits(table: pd.DataFrame, paths: dict[str, Path]) -> None:
    """Write the CSV of each split. Raises InputError where one would be empty."""
    tables = {split: table[table["split"] == split].drop(columns="split") for split in paths}
    if empty := [split for split, rows in tables.items() if rows.empty]:
        raise InputError(f"no rows are left for {empty[0]}.csv; look at --images, the shares and the labels")
    for split, rows in tables.items():
        with atomic_write(paths[split]) as file:
            rows.to_csv(file, index=False)


def split_at_random(prepared: Prepared, val_share: float, test_share: float | None, seed: int) -> None:
    """Fill in the splits that the official files leave open. The seed decides, whatever pictures are missing."""
    splits = prepared.table["split"].to_numpy(object)
    shares = {} if (splits == "val").any() else {"val": val_share}
    if not (splits == "test").any():
        shares["test"] = test_share
    pool = np.flatnonzero((splits == "") | (splits == "train"))
    order = np.random.default_rng(seed).permutation(pool)
    splits[pool] = "train"
    if shares:
        held = math.ceil(round(sum(shares.values()) * len(pool), 6))
        val = math.floor(held * shares.get("val", 0) / sum(shares.values()))
        splits[order[:val]] = "val"
        splits[order[val:held]] = "test" if "test" in shares else "val"
    prepared.table["split"] = splits


def look(prepared: Prepared, options: argparse.Namespace, journal: Path, watch: Watch) -> list[str]:
    """Leave out the rows whose pictures are missing, or stop or spoil training. Returns what was seen, as text."""
    find = finder(options.images)
    found = [find(name) for name in prepared.files]
    if not any(found):
        none = f"none of the {len(found)} pictures is there, as {prepared.files[0]}"
        raise InputError(f"{options.images}: {none}")
    names = pd.Series(found).fillna(prepared.files)
    if not prepared.form.suffix:
        prepared.table["image"] = names
        prepared.separate(names)  # a.jpg and a.JPG may be one file
        prepared.keep(~prepared.files.duplicated(), "another row has the same picture")
        names = prepared.files
    if options.no_check:
        kinds = pd.Series(["" if find(name) else "missing" for name in names])
        if (missing := kinds != "").any():
            prepared.notes.append(f"the first picture that is missing: {names[missing.argmax()]}")
        findings = []
    else:
        findings = pictures.examine_all(options.images, names, journal, options.num_workers, watch)
        kinds = pd.Series([finding.kinds if finding.verdict != "used" else "" for finding in findings])
    for kind in sorted(set(kinds) - {""}):
        prepared.keep(kinds != kind, f"picture {kind}")
        kinds = kinds[kinds != kind].reset_index(drop=True)
    return [pictures.report(findings)] if findings else []


def check_request(options: argparse.Namespace) -> None:
    """Raises InputError where `check` could not do what is asked."""
    if options.clean and not options.csv:
        raise InputError("--clean needs --csv, the CSVs to clean")
    if (options.clean or options.copies) and len({path.name for path in options.csv}) < len(options.csv):
        raise InputError("--csv: two files have the same name; give those of one dataset")
    if options.copies and len(options.csv) < 2:
        raise InputError("--copies needs --csv with the CSVs of two splits or more, to compare")
    for path in options.csv if options.clean else ():
        if (options.clean / path.name).exists():
            raise InputError(f"{options.clean / path.name}: is there already; give another --clean")


def check(options: argparse.Namespace) -> int:
    """The subcommand `check`."""
    check_request(options)
    tables = {path: pictures.named_in(path) for path in options.csv}
    find = finder(options.images)
    for table in tables.values():
        table["_file"] = [find(name) or name for name in table["_file"]]
    names = list(dict.fromkeys(name for table in tables.values() for name in table["_file"]))
    if not tables:
        names, others = pictures.pictures_in(options.images)
        if others:
            print(f"{others} files whose names do not end as a picture's are not looked at")
        if not names:
            raise InputError(f"{options.images}: no pictures in it")
    options.out.mkdir(parents=True, exist_ok=True)
    journal, pairs = options.out / "pictures.csv", []
    with Watch() as watch:
        findings = pictures.examine_all(options.images, names, journal, options.num_workers, watch)
        if options.copies:
            known = copies.signatures(options.images, names, options.num_workers, watch)
            splits_ = {path.name: list(table["_file"]) for path, table in tables.items()}
            pairs = copies.find_copies(splits_, known, options.near)
            copies.write(pairs, options.out / "copies.csv")
    print(pictures.report(findings))
    print(f"each of them: {journal}")
    if options.copies:
        print(copies.report(pairs))
        print(f"each of them: {options.out / 'copies.csv'}")
    bad = {finding.image for finding in findings if finding.verdict != "used"}
    if options.clean:
        print("\n".join(pictures.write_clean(tables, bad, options.clean, copies.of(pairs, "train.csv"))))
        return 0
    return int(bool(bad or pairs))


def fill_cache(options: argparse.Namespace) -> int:
    """The subcommand `cache`: what `main_nni.py --cache` would need with the same options."""
    if not options.csv.is_dir():
        raise InputError(f"{options.csv}: no such folder; --csv names the folder of the CSVs")
    given = {"skip_missing": True, "val_share": options.val_share, "seed": options.seed}
    splits = read_splits(options.csv, options.images, None, select_on_test=options.released_protocol, **given)
    for note in splits.notes:
        log.info("%s", note)
    decoder, eval_decoder = pick_decoders(options, torch.device("cpu"))
    wanted: dict[tuple, list[str]] = {}
    for split in ("train", "val", "test"):
        resize = Transform(options.dataset, options.size, split == "train").resize
        kind = resize, decoder if split == "train" else eval_decoder
        wanted.setdefault(kind, []).extend(getattr(splits, split).images)
    problems = []
    with Watch() as watch:
        for (resize, used), names in wanted.items():
            store = Cache(options.out, resize, used)
            names = np.array(list(dict.fromkeys(names)))
            bad = repair(store, names, options.images, options.num_workers, watch)
            size = os.path.getsize(store.path) / 2**30
            print(f"{store.folder}: {len(names) - len(bad)} pictures, {size:.2f} GiB")
            problems += bad
    for problem in problems[:10]:
        log.error("%s", problem)
    if len(problems) > 10:
        log.error("and %d more; `prepare_data.py check` names them all", len(problems) - 10)
    return 2 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
