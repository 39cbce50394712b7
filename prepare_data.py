"""From the official downloads to what training reads: CSVs, checked photographs, a cache. Try `--help`."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence

from iaa.options.preparation_options import parse
from iaa.runtime.program import run_command

log = logging.getLogger("eat")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand; returns the exit status: 0, 1 if `check` found bad photographs or copies, 2 for bad input, 128 and more."""
    options = parse(argv)

    def work() -> int | None:
        from iaa.photographs import preparation  # takes seconds

        commands = {"check": preparation.check, "cache": fill_cache}
        return commands.get(options.command, preparation.prepare)(options)

    cached = options.command == "cache"
    rest = "the same command goes on where it stopped" if cached else "nothing was written"
    return run_command("prepare_data.py", work, rest)


def fill_cache(options: argparse.Namespace) -> None:
    """The subcommand `cache`: store the photographs that `main_nni.py --cache` needs with the same options."""
    from dataset import read_splits
    from iaa.photographs.cache import Cache
    from iaa.photographs.labels import FORMATS, LabelFormat
    from iaa.runtime.signals import StopSignal
    from iaa.training.build import pick_decoders

    settings = {"skip_missing": True, "val_share": options.val_share, "seed": options.seed}
    splits = read_splits(
        options.csv, options.images, None, select_on_test=options.released_protocol, **settings
    )
    for note in splits.notes:
        log.info("%s", note)
    decoder, eval_decoder = pick_decoders(options.decode, options.released_protocol)
    with StopSignal() as stop:
        for split in ("train", "val", "test"):
            train, images = split == "train", getattr(splits, split).images
            resize = FORMATS.get(options.dataset, LabelFormat()).resize(options.size, train)
            cache = Cache(options.out, resize, decoder if train else eval_decoder)
            cache.fill(images, options.images, options.num_workers, stop)
            size = os.path.getsize(cache.path) / 2**30
            print(f"{split}: {len(images)} pictures are in {cache.folder} ({size:.2f} GiB)")


if __name__ == "__main__":
    sys.exit(main())
