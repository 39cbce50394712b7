"""One call of predict.py: photographs become rows, which go to the table, the terminal, the overlays and the page."""

from __future__ import annotations

import argparse
import hashlib
import logging
import os
import signal
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack

import numpy as np
import torch

from iaa.errors import InputError
from iaa.networks.attention_maps import AttentionRecorder, background_share, mean_map
from iaa.networks.trained_network import TrainedNetwork, load_for_command
from iaa.options.scoring_options import ALL, is_folder
from iaa.reports import gallery
from iaa.reports.overlays import draw_overlay, overlay_path, read_mask
from iaa.reports.terminal_summary import TerminalSummary
from iaa.runtime import distributed
from iaa.runtime.progress import progress_bar
from iaa.runtime.signals import StopSignal, stop_errors
from iaa.scoring.calibration import calibrate
from iaa.scoring.parquet_parts import ParquetParts
from iaa.scoring.photos import PhotoBatch, Photos, photo_batches
from iaa.scoring.rows import RowBuilder, ScoredPhoto, read_reference, score_batches
from iaa.scoring.shards import ORIGIN, shard_batches
from iaa.scoring.sources import Source, Sources, shards_of
from iaa.scoring.table import Row, Table
from iaa.training import checkpoint
from iaa.training.build import pick_device
from iaa.training.steps import Precision

log = logging.getLogger("eat")


def run(options: argparse.Namespace) -> int:
    """Score as the options ask. Returns the exit status. Raises InputError, Interrupted."""
    try:
        with StopSignal() as stop, stop_errors(stop):
            return score(options, stop)
    except BrokenPipeError:  # nobody reads the rows any more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE


def score(options: argparse.Namespace, stop: StopSignal) -> int:
    """Load the network, score the photographs that have no row yet, and write the page.

    Returns 1 if a photograph has an error, else 0. Each of several processes returns 0 then: torchrun would end the others.
    """
    device, sources = pick_device(options.gpu_id), Sources(options.paths, options.list)
    trained = load_for_command(options, will_calibrate=bool(options.calibrate_on))
    counts = Counter(source.is_shard for source in sources)
    if not counts:
        names = ", ".join(options.paths + options.list)
        raise InputError(f"no photographs in {names}{sources.describe_skipped()}")
    refuse_options(options, trained, has_shards=counts[True] > 0)
    trained.model.to(device)
    precision = pick_precision(options.amp, device)
    photos = Photos(trained.resize, options.decode, options.upright)
    reference = comparison = recorder = table = page = None
    if options.reference:
        reference, notes = read_reference(options.reference, trained)
        trained.notes += notes
    if options.compare:
        comparison = gallery.read_comparison(options.compare, trained, device)
    if options.report:
        page = gallery.Gallery(options.report_images)
    if (options.explain or options.report) and trained.points is not None:
        recorder = AttentionRecorder(trained.model, options.layer)
    extra_columns = ["attention_background"] if recorder else []
    extra_columns += ["explanation"] if options.explain else []
    extra_columns += ORIGIN if is_folder(options.out) or counts[True] else ()
    builder = RowBuilder(trained, reference, extra_columns)
    if options.out:
        table = (ParquetParts if is_folder(options.out) else Table)(options.out, builder.columns)
    if options.calibrate_on:
        paths, count = options.calibrate_on, options.calibrate_points
        note = calibrate(trained.model, photos, paths, count, device, options.num_workers, stop)
        trained.notes.append(note)
        if options.save_calibrated:
            checkpoint.save(options.save_calibrated, trained.model.state_dict())
    log_networks(trained, comparison and comparison.trained, device)

    summary, turned = TerminalSummary(trained.scale, options.out), 0
    waiting = defaultdict(list)  # results by shard, until the shard is done
    with ExitStack() as stack:
        hashes: set[int] = set()
        if table:
            settings = make_settings(options, builder, precision)
            write = stack.enter_context(table.writing(settings, options.append, options.overwrite))
            hashes = take_over_rows(table, summary, page)
        if recorder:
            stack.enter_context(recorder)
        key = table.key if table else str
        batches = unscored_batches(sources, hashes, key, photos, options.batch_size, options.num_workers)
        total = None if counts[True] else counts[False]
        bar = stack.enter_context(progress_bar("score", total, summary.rows_before))
        for batch, results in score_batches(trained, batches, precision, recorder, stop):
            turned += batch.turned
            bar.update(len(results))
            waiting[batch.shard] += results
            if batch.shard and not batch.is_last:
                continue
            rows = [make_row(options, builder, result) for result in waiting.pop(batch.shard)]
            if table:
                write(*(row for row, _ in rows), shard=batch.shard)
            for row, attention in rows:
                summary.add(row)
                if page:
                    page.add(row, attention)
    if turned and not options.upright:
        log.info(
            "%d photographs say in EXIF that they are stored turned, and were scored as stored, as in training; "
            "--upright turns them",
            turned,
        )
    summary.close(sources.describe_skipped())
    if page:
        write_page(options, trained, page, comparison, device, stop)
    return int(summary.errors + summary.errors_before > 0 and distributed.world_size() == 1)


def write_page(
    options: argparse.Namespace,
    trained: TrainedNetwork,
    page: gallery.Gallery,
    comparison: gallery.Comparison | None,
    device: torch.device,
    stop: StopSignal,
) -> None:
    """Write the page of --report, for which the network of --compare scores photographs in float32."""

    def score_again(network: TrainedNetwork, images: Sequence[str]) -> Iterator[ScoredPhoto]:
        photos = Photos(network.resize, options.decode, options.upright)
        batches = photo_batches(photos, map(Source, images), options.batch_size, options.num_workers)
        with progress_bar("the page", len(images)) as bar:
            for _, results in score_batches(network, batches, Precision(device), None, stop):
                bar.update(len(results))
                yield from results

    about = {"upright": options.upright, "num_workers": options.num_workers}
    gallery.write_gallery(options.report, trained, page, comparison, score_again, stop=stop, **about)


def refuse_options(options: argparse.Namespace, trained: TrainedNetwork, has_shards: bool) -> None:
    """Raises InputError for options that the photographs or the network exclude."""
    for name in ("explain", "report"):
        if has_shards and getattr(options, name):
            raise InputError(f"--{name}: photographs in shards cannot be shown; leave it out, or give files")
    for name in ("explain", "layer", "mask"):
        if trained.points is None and getattr(options, name) not in (None, ALL):
            raise InputError(f"--{name}: {trained.name} has no deformable layers; leave it out")


def log_networks(trained: TrainedNetwork, compared: TrainedNetwork | None, device: torch.device) -> None:
    """Say by which network the scores are made."""
    for note in trained.notes + (compared.notes if compared else []):
        log.info("%s", note)
    low, high = trained.scale
    points = "" if trained.points is None else f", {trained.points} interest points"
    scale = f"trained on {trained.dataset}, scores {low:g} to {high:g}"
    log.info("%s %s%s, on %s", trained.name, scale, points, device)


def take_over_rows(
    table: Table | ParquetParts, summary: TerminalSummary, page: gallery.Gallery | None
) -> set[int]:
    """Count the rows that the table has already. Returns hashes of the names of their photographs, and of shards."""
    hashes = set(map(hash, table.shards))
    summary.shards_before = len(table.shards)
    for row in table.rows():
        path = os.path.abspath(row["image"])
        hashes.update(hash(table.key(name)) for name in (path, *shards_of(path)))
        summary.count_earlier(row)
        if page:
            page.add(row)
    return hashes


def unscored_batches(
    sources: Sources,
    hashes: set[int],
    key: Callable[[str], str],
    photos: Photos,
    batch_size: int,
    num_workers: int,
) -> Iterator[PhotoBatch]:
    """This process's share of the files, then of the shards. hashes, key: see `Sources.without`."""
    rank, world_size, shards = distributed.rank(), distributed.world_size(), []

    def files() -> Iterator[Source]:
        number = 0
        for source in sources.without(hashes, key):
            if source.is_shard:
                shards.append(source.path)
                continue
            if number % world_size == rank:
                yield source
            number += 1

    yield from photo_batches(photos, files(), batch_size, num_workers)
    yield from shard_batches(photos, shards[rank::world_size], batch_size, num_workers)


def make_row(
    options: argparse.Namespace, builder: RowBuilder, scored: ScoredPhoto
) -> tuple[Row, np.ndarray | None]:
    """A photograph's row, and its attention map (H, W) if that was recorded. Draws the overlay of --explain."""
    row = builder.build(scored)
    if not scored.attention_maps:
        return row, None
    attention, background, overlay = mean_map(list(scored.attention_maps.values())), None, ""
    foreground = read_mask(options.mask, scored.path) if options.mask else None
    if foreground is not None or not options.mask:
        background = background_share(attention, foreground)
    if options.explain:
        path, (low, high) = overlay_path(options.explain, scored.path), builder.trained.scale
        title = f"{os.path.basename(scored.path)}: score {row['score']:.3f} ({low:g} to {high:g})"
        if draw_overlay(path, scored.path, scored.attention_maps, title, foreground, options.upright):
            overlay = str(path)
    return builder.build(scored, background, overlay), attention


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
        "precision": str(precision.dtype or torch.float32),
        "reference": None if reference is None else hashlib.sha256(reference.tobytes()).hexdigest()[:16],
        "network": network.hexdigest()[:16],
    }
    if (options.explain or options.report) and trained.points is not None:
        settings |= {"layer": options.layer, "mask": options.mask and str(options.mask)}
    if trained.points == "batch":
        settings["batch_size"] = options.batch_size
    return settings


def pick_precision(amp: str, device: torch.device) -> Precision:
    """float32, or bf16 by `--amp`."""
    has_bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return Precision(device, torch.bfloat16 if amp == "bf16" or (amp == "auto" and has_bf16) else None)
