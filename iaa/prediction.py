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

import torch
from tqdm import tqdm

from iaa.errors import InputError
from iaa.networks.attention_maps import AttentionRecorder
from iaa.networks.trained_network import TrainedNetwork, load_for_command
from iaa.options.scoring_options import ALL
from iaa.reports import gallery
from iaa.reports.overlays import draw_overlay, overlay_path
from iaa.reports.terminal_summary import TerminalSummary
from iaa.runtime.files import read_json_object
from iaa.runtime.progress import progress_bar
from iaa.runtime.signals import StopSignal, stop_errors
from iaa.scoring.photos import PhotoBatch, Photos, ScoredPhoto
from iaa.scoring.rows import RowBuilder, read_reference, score_batches
from iaa.scoring.shards import ORIGIN, shard_batches
from iaa.scoring.sources import Sources, is_shard, path_number, shards_of
from iaa.scoring.stars import SidecarWriter
from iaa.scoring.table import Row, Table
from iaa.training.build import MIRRORED, pick_device
from iaa.training.steps import Precision

log = logging.getLogger("eat")


def run(options: argparse.Namespace) -> int:
    """Score as the options ask. Returns the exit status. Raises InputError, Interrupted."""
    with StopSignal() as stop, stop_errors(stop):
        return score(options, stop)


def score(options: argparse.Namespace, stop: StopSignal) -> int:
    """Load the network, score the photographs that have no row yet, and show their scores.

    Returns 1 if a photograph has an error or a shard is damaged, else 0.
    """
    device = pick_device(options.gpu_id)
    sources = Sources(options.paths, options.list, options.pairs == "both")
    trained = load_for_command(options)
    counts = Counter(map(is_shard, sources))
    if not counts:
        names = ", ".join(options.paths + options.list)
        raise InputError(f"no photographs in {names}{sources.describe_skipped()}")
    has_shards = counts[True] > 0
    refuse_options(options, trained, has_shards)
    trained.model.to(device)
    if options.tta == "flip":
        trained.notes.append(f"scores: {MIRRORED}")
    precision = Precision(device, torch.bfloat16 if options.amp == "bf16" else None)
    is_recorded = (options.explain or options.report) and trained.points is not None
    recorder = AttentionRecorder(trained.model, options.layer) if is_recorded else None
    builder = make_row_builder(options, trained, has_shards)
    table = Table(Path(options.out), builder.columns) if options.out else None
    page = gallery.Gallery(options.report_images) if options.report else None
    sidecars = make_sidecars(options) if options.xmp else None
    common = find_common_folder(sources, table if options.append else None) if options.explain else ""
    log_network(trained, device)
    summary = TerminalSummary(trained.scale, options.out)
    with ExitStack() as stack:
        write, done = None, set()
        if table:
            settings = make_settings(options, builder, precision, common)
            write = stack.enter_context(table.writing(settings, options.append, options.overwrite))
            done = take_over_rows(table, summary, page, sidecars)
        if recorder:
            stack.enter_context(recorder)
        total = None if has_shards else counts[False]
        bar = stack.enter_context(progress_bar("score", total, summary.rows_before))
        batches = unscored_batches(make_photos(options, trained), sources.without(done))
        scored = score_batches(trained, batches, precision, recorder, stop, options.tta == "flip")
        for batch in whole_shards(scored, bar):
            rows = [builder.build(photo) for photo in batch.photos]
            if options.explain:
                for photo, row in zip(batch.photos, rows, strict=True):
                    row["explanation"] = explain(
                        photo, row, options.explain, common, trained.scale, options.upright
                    )
            for row in rows if sidecars else ():
                sidecars.add(row)
            if write and rows:
                write(*rows)
            summary.count(batch)
            for photo, row in zip(batch.photos, rows, strict=True):
                summary.add(row)
                if page:
                    page.add(row, photo.attention)
    about_sidecars = sidecars.write(stop) if sidecars else ""
    show(options, trained, summary, page, about_sidecars + sources.describe_skipped(), stop)
    return int(summary.has_errors or bool(sidecars and sidecars.faults))


def refuse_options(options: argparse.Namespace, trained: TrainedNetwork, has_shards: bool) -> None:
    """Raises InputError for options that the photographs or the network exclude."""
    for name in ("explain", "report", "xmp"):
        if has_shards and getattr(options, name):
            problem = "have no sidecars" if name == "xmp" else "cannot be shown"
            raise InputError(f"--{name}: photographs in shards {problem}; leave it out, or give files")
    for name in ("explain", "layer"):
        if trained.points is None and getattr(options, name) not in (None, ALL):
            raise InputError(f"--{name}: {trained.name} has no deformable layers; leave it out")


def make_row_builder(options: argparse.Namespace, trained: TrainedNetwork, has_shards: bool) -> RowBuilder:
    """The builder of rows with the columns that the options ask for. Raises InputError for a bad --reference."""
    reference = read_reference(options.reference, trained) if options.reference else None
    is_recorded = (options.explain or options.report) and trained.points is not None
    columns = ["attention_background"] if is_recorded else []
    columns += ["explanation"] if options.explain else []
    columns += ORIGIN if has_shards else ()
    return RowBuilder(trained, reference, columns)


def make_photos(options: argparse.Namespace, trained: TrainedNetwork) -> Photos:
    names = ("upright", "batch_size", "num_workers", "max_bytes", "max_pixels", "srgb")
    return Photos(trained.resize, options.decode, **{name: getattr(options, name) for name in names})


def make_sidecars(options: argparse.Namespace) -> SidecarWriter:
    is_stem = options.xmp_name == "stem"
    return SidecarWriter(is_stem, options.stars, options.reject, options.xmp_overwrite)


def find_common_folder(sources: Sources, earlier: Table | None) -> str:
    """The folder of all photographs, below which overlays lie as these do. earlier: a table that is continued."""
    settings = read_json_object(earlier.settings_file) if earlier else {}
    return settings.get("explained") or sources.common_folder()


def log_network(trained: TrainedNetwork, device: torch.device) -> None:
    for note in trained.notes:
        log.info("%s", note)
    points = "" if trained.points is None else f", {trained.points} interest points"
    scale = "trained on {}, scores {:g} to {:g}".format(trained.dataset, *trained.scale)
    log.info("%s %s%s, on %s", trained.name, scale, points, device)


def take_over_rows(
    table: Table, summary: TerminalSummary, page: gallery.Gallery | None, sidecars: SidecarWriter | None
) -> set[int]:
    """Count the rows that the table has already. Returns the `path_number` of their photographs and shards."""
    done: set[int] = set()
    for row in table.rows():
        done.update(map(path_number, [row["image"], *shards_of(row["image"])]))
        summary.count_earlier(row)
        if page:
            page.add(row)
        if sidecars:
            sidecars.add(row)
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


def whole_shards(batches: Iterable[PhotoBatch], bar: tqdm) -> Iterator[PhotoBatch]:
    """The same photographs, those of a shard in one batch, as their rows are written together. Counts them on the bar."""
    waiting: dict[str, list[ScoredPhoto]] = defaultdict(list)  # by shard
    for batch in batches:
        bar.update(len(batch.photos))
        waiting[batch.shard] += batch.photos
        if not (batch.shard and batch.photos):  # the last batch of a shard is empty
            yield batch._replace(photos=waiting.pop(batch.shard))


def explain(
    photo: ScoredPhoto, row: Row, folder: Path, common: str, scale: tuple[float, float], upright: bool
) -> str:
    """Draw the overlay of --explain. Returns its path; empty where there is none.

    common: the folder of all photographs; overlays lie in `folder` as these lie below it.
    """
    if not photo.attention_maps:
        return ""
    path, (low, high) = overlay_path(folder, photo.path, common), scale
    title = f"{os.path.basename(photo.path)}: score {row['score']:.3f} ({low:g} to {high:g})"
    is_drawn = draw_overlay(path, photo.path, photo.attention_maps, title, upright)
    return str(path) if is_drawn else ""


def show(
    options: argparse.Namespace,
    trained: TrainedNetwork,
    summary: TerminalSummary,
    page: gallery.Gallery | None,
    notes: str,
    stop: StopSignal,
) -> None:
    """Write the page, and print the summary. notes: the end of its last line. Raises Interrupted."""
    if summary.turned and not options.upright:
        stored = (
            "photographs say in EXIF that they are stored turned, and were scored as stored, as in training"
        )
        stored = f"{summary.turned} {stored}; --upright turns them"
        log.info("%s", stored)
        if summary.turned > (summary.scored + summary.errors) / 20:
            notes = f"; {stored}{notes}"
    if summary.other_colours and not options.srgb:
        profiles = "photographs have a colour profile other than sRGB, left out as in training"
        log.info("%d %s; --srgb converts them", summary.other_colours, profiles)
    if page:
        about = {"upright": options.upright, "num_workers": options.num_workers}
        gallery.write_gallery(options.report, trained, page, stop=stop, **about)
    written = [str(path) for path in (options.out, options.report) if path]
    written += [f"{options.explain} (overlays: {summary.overlays})"] if options.explain else []
    summary.close(notes, written)


def make_settings(
    options: argparse.Namespace, builder: RowBuilder, precision: Precision, common: str
) -> dict:
    """How the scores are made: the same for all rows of one table. common: see `explain`."""
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
        # None as in tables of before there were these options
        "srgb": options.srgb or None,
        "tta": None if options.tta == "off" else options.tta,
        "precision": str(precision.dtype or torch.float32),
        "reference": None if reference is None else hashlib.sha256(reference.tobytes()).hexdigest()[:16],
        "network": network.hexdigest()[:16],
    }
    if (options.explain or options.report) and trained.points is not None:
        settings["layer"] = options.layer
    if trained.points == "batch":
        settings["batch_size"] = options.batch_size
    if common:
        settings["explained"] = common
    return settings
