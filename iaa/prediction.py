"""One call of predict.py: photographs become rows, which go to the table, the terminal, the overlays and the page."""

from __future__ import annotations

import argparse
import hashlib
import logging
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch

from iaa.errors import InputError
from iaa.networks.attention_maps import AttentionRecorder, background_share, mean_map
from iaa.networks.trained_network import TrainedNetwork, load_for_command
from iaa.options.scoring_options import ALL
from iaa.reports import gallery
from iaa.reports.overlays import draw_overlay, overlay_path
from iaa.reports.terminal_summary import TerminalSummary
from iaa.runtime.files import read_json_object
from iaa.runtime.progress import progress_bar
from iaa.runtime.signals import StopSignal, stop_errors
from iaa.scoring.photos import PhotoBatch, Photos, ScoredPhoto
from iaa.scoring.rows import RowBuilder, read_reference, round_to_float32, score_batches
from iaa.scoring.shards import ORIGIN, shard_batches
from iaa.scoring.sources import Sources, is_shard, path_number, shards_of
from iaa.scoring.table import Row, Table
from iaa.training.build import pick_device
from iaa.training.steps import Precision

log = logging.getLogger("eat")


def run(options: argparse.Namespace) -> int:
    """Score as the options ask. Returns the exit status. Raises InputError, Interrupted."""
    with StopSignal() as stop, stop_errors(stop):
        return score(options, stop)


def score(options: argparse.Namespace, stop: StopSignal) -> int:
    """Load the network, score the photographs that have no row yet, and write the page.

    Returns 1 if a photograph has an error or a shard is damaged, else 0.
    """
    device = pick_device(options.gpu_id)
    sources = Sources(options.paths, options.list, options.pairs == "both")
    trained = load_for_command(options)
    counts = Counter(map(is_shard, sources))
    has_shards = counts[True] > 0
    if not counts:
        names = ", ".join(options.paths + options.list)
        raise InputError(f"no photographs in {names}{sources.describe_skipped()}")
    refuse_options(options, trained, has_shards)
    trained.model.to(device)
    precision = Precision(device, torch.bfloat16 if options.amp == "bf16" else None)
    names = ("upright", "batch_size", "num_workers", "max_bytes", "max_pixels", "srgb")
    photos = Photos(trained.resize, options.decode, **{name: getattr(options, name) for name in names})
    reference = recorder = table = page = None
    if options.reference:
        reference, notes = read_reference(options.reference, trained)
        trained.notes += notes
    if options.report:
        page = gallery.Gallery(options.report_images)
    if (options.explain or options.report) and trained.points is not None:
        recorder = AttentionRecorder(trained.model, options.layer)
    extra_columns = ["attention_background"] if recorder else []
    extra_columns += ["explanation"] if options.explain else []
    extra_columns += ORIGIN if has_shards else ()
    builder = RowBuilder(trained, reference, extra_columns)
    if options.out:
        table = Table(Path(options.out), builder.columns)
    common = ""
    if options.explain:
        earlier = read_json_object(table.settings_file) if options.append else {}
        common = earlier.get("explained") or sources.common_folder()
    for note in trained.notes:
        log.info("%s", note)
    points = "" if trained.points is None else f", {trained.points} interest points"
    scale = "trained on {}, scores {:g} to {:g}".format(trained.dataset, *trained.scale)
    log.info("%s %s%s, on %s", trained.name, scale, points, device)

    summary = TerminalSummary(trained.scale, options.out)
    turned = other_colours = damaged = overlays = 0
    waiting: dict[str, list[ScoredPhoto]] = defaultdict(list)  # by shard, until the shard is done
    with ExitStack() as stack:
        done: set[int] = set()
        if table:
            settings = make_settings(options, builder, precision)
            settings |= {"explained": common} if common else {}
            write = stack.enter_context(table.writing(settings, options.append, options.overwrite))
            done = take_over_rows(table, summary, page)
        if recorder:
            stack.enter_context(recorder)
        batches = unscored_batches(photos, sources.without(done))
        total = None if has_shards else counts[False]
        bar = stack.enter_context(progress_bar("score", total, summary.rows_before))
        for batch in score_batches(trained, batches, precision, recorder, stop):
            bar.update(len(batch.photos))
            turned += sum(photo.turned for photo in batch.photos)
            other_colours += sum(photo.other_colours for photo in batch.photos)
            waiting[batch.shard] += batch.photos
            if batch.fault:
                log.warning("warning: %s: cannot be read to its end (%s)", batch.shard, batch.fault)
                damaged += 1
            if batch.shard and batch.photos:
                continue  # the last batch of a shard is empty
            rows = [make_row(options, builder, photo, common) for photo in waiting.pop(batch.shard)]
            if table and rows:
                write(*(row for row, _ in rows))
            for row, attention in rows:
                summary.add(row)
                overlays += bool(row.get("explanation"))
                if page:
                    page.add(row, attention)
    if turned and not options.upright:
        log.info(
            "%d photographs say in EXIF that they are stored turned, and were scored as stored, as in training; "
            "--upright turns them",
            turned,
        )
    if other_colours and not options.srgb:
        note = "%d photographs have a colour profile other than sRGB, left out as in training; --srgb converts them"
        log.info(note, other_colours)
    if page:
        about = {"upright": options.upright, "num_workers": options.num_workers}
        gallery.write_gallery(options.report, trained, page, stop=stop, **about)
    written = [str(path) for path in (options.out, options.report) if path]
    written += [f"{options.explain} (overlays: {overlays})"] if options.explain else []
    summary.close(sources.describe_skipped(), written)
    return int(summary.errors + summary.errors_before + damaged > 0)


def refuse_options(options: argparse.Namespace, trained: TrainedNetwork, has_shards: bool) -> None:
    """Raises InputError for options that the photographs or the network exclude."""
    for name in ("explain", "report"):
        if has_shards and getattr(options, name):
            raise InputError(f"--{name}: photographs in shards cannot be shown; leave it out, or give files")
    for name in ("explain", "layer"):
        if trained.points is None and getattr(options, name) not in (None, ALL):
            raise InputError(f"--{name}: {trained.name} has no deformable layers; leave it out")


def take_over_rows(table: Table, summary: TerminalSummary, page: gallery.Gallery | None) -> set[int]:
    """Count the rows that the table has already. Returns the `path_number` of their photographs and shards."""
    done: set[int] = set()
    for row in table.rows():
        done.update(map(path_number, [row["image"], *shards_of(row["image"])]))
        summary.count_earlier(row)
        if page:
            page.add(row)
    return done


def unscored_batches(photos: Photos, paths: Iterable[str]) -> Iterator[PhotoBatch]:
    """Batches of the files, then of the shards."""
    shards = []

    def files() -> Iterator[str]:
        for path in paths:
            if is_shard(path):
                shards.append(path)
            else:
                yield path

    yield from photos.batches(files())
    yield from shard_batches(photos, shards)


def make_row(
    options: argparse.Namespace, builder: RowBuilder, photo: ScoredPhoto, common: str
) -> tuple[Row, np.ndarray | None]:
    """A photograph's row, and its attention map (H, W) if that was recorded. Draws the overlay of --explain.

    common: the folder of all photographs; overlays lie as these lie below it.
    """
    row = builder.build(photo)
    if not photo.attention_maps:
        return row, None
    attention = mean_map(list(photo.attention_maps.values()))
    row["attention_background"] = round_to_float32(background_share(attention))
    if options.explain:
        path, (low, high) = overlay_path(options.explain, photo.path, common), builder.trained.scale
        title = f"{os.path.basename(photo.path)}: score {row['score']:.3f} ({low:g} to {high:g})"
        if draw_overlay(path, photo.path, photo.attention_maps, title, options.upright):
            row["explanation"] = str(path)
    return row, attention


def make_settings(options: argparse.Namespace, builder: RowBuilder, precision: Precision) -> dict:
    """How the scores are made: the same for all rows of one table."""
    trained, reference = builder.trained, builder.reference
    network = hashlib.sha256()
    for name, value in trained.model.state_dict().items():
        network.update(name.encode())
        network.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    settings = {
        "weights": str(trained.path),
        "model": trained.name,
        "dataset": trained.dataset,
        "score_range": list(trained.scale),
        "interest_points": trained.points,
        "columns": builder.columns,
        "decode": options.decode,
        "upright": options.upright,
        "srgb": options.srgb or None,  # as in tables of before there was the option
        "precision": str(precision.dtype or torch.float32),
        "reference": None if reference is None else hashlib.sha256(reference.tobytes()).hexdigest()[:16],
        "network": network.hexdigest()[:16],
    }
    if (options.explain or options.report) and trained.points is not None:
        settings["layer"] = options.layer
    if trained.points == "batch":
        settings["batch_size"] = options.batch_size
    return settings
