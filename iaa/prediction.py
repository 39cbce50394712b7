"""One call of predict.py: photographs become rows, which go to the table, the terminal, the overlays and the page."""

from __future__ import annotations

import argparse
import hashlib
import logging
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
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
    """Load the network, and score the photographs that have no row yet.

    Returns 1 if a photograph has an error, a shard is damaged or a sidecar could not be written, else 0.
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
    builder = make_row_builder(options, trained, is_recorded, has_shards)
    table = Table(Path(options.out), builder.columns) if options.out else None
    common = find_common_folder(sources, table if options.append else None) if options.explain else ""
    log_network(trained, device)
    results = Results(options, trained)
    with ExitStack() as stack:
        write, done = None, set()
        if table:
            settings = make_settings(options, builder, precision, common)
            write = stack.enter_context(table.writing(settings, options.append, options.overwrite))
            done = take_over_rows(table, results)
        if recorder:
            stack.enter_context(recorder)
        total = None if has_shards else counts[False]
        bar = stack.enter_context(progress_bar("score", total, results.summary.rows_before))
        batches = unscored_batches(make_photos(options, trained), sources.without(done))
        scored = score_batches(trained, batches, precision, recorder, stop, options.tta == "flip")
        for batch in join_shards(scored, bar):
            rows = [builder.build(photo) for photo in batch.photos]
            if options.explain:
                draw_overlays(batch.photos, rows, options.explain, common, trained.scale, options.upright)
            for row in rows if results.sidecars else ():
                results.sidecars.add(row)
            if write and rows:
                write(*rows)
            results.summary.count(batch)
            for photo, row in zip(batch.photos, rows, strict=True):
                results.add(row, photo.attention)
    return results.close(sources.describe_skipped(), stop)


def refuse_options(options: argparse.Namespace, trained: TrainedNetwork, has_shards: bool) -> None:
    """Raises InputError for options that the photographs or the network exclude."""
    for name in ("explain", "report", "xmp"):
        if has_shards and getattr(options, name):
            problem = "have no sidecars" if name == "xmp" else "cannot be shown"
            raise InputError(f"--{name}: photographs in shards {problem}; leave it out, or give files")
    for name in ("explain", "layer"):
        if trained.points is None and getattr(options, name) not in (None, ALL):
            raise InputError(f"--{name}: {trained.name} has no deformable layers; leave it out")


def make_row_builder(
    options: argparse.Namespace, trained: TrainedNetwork, is_recorded: bool, has_shards: bool
) -> RowBuilder:
    """The builder of rows with the columns that the options ask for. Raises InputError for a bad --reference."""
    reference = read_reference(options.reference, trained) if options.reference else None
    columns = ["attention_background"] if is_recorded else []
    columns += ["explanation"] if options.explain else []
    columns += ORIGIN if has_shards else ()
    return RowBuilder(trained, reference, columns)


def make_photos(options: argparse.Namespace, trained: TrainedNetwork) -> Photos:
    names = ("upright", "batch_size", "num_workers", "max_bytes", "max_pixels", "srgb")
    return Photos(trained.resize, options.decode, **{name: getattr(options, name) for name in names})


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


class Results:
    """Where rows go beside the table: the terminal, the page and the sidecars."""

    def __init__(self, options: argparse.Namespace, trained: TrainedNetwork):
        self.options, self.trained = options, trained
        self.summary, self.page, self.sidecars = TerminalSummary(trained.scale, options.out), None, None
        if options.report:
            self.page = gallery.Gallery(options.report_images)
        if options.xmp:
            is_stem = options.xmp_name == "stem"
            self.sidecars = SidecarWriter(is_stem, options.stars, options.reject, options.xmp_overwrite)

    def add(self, row: Row, attention: np.ndarray | None = None, is_earlier: bool = False) -> None:
        """Show a row on the terminal and the page. attention: its map (H, W). is_earlier: the table had it already."""
        if is_earlier:
            self.summary.count_earlier(row)
        else:
            self.summary.add(row)
        if self.page:
            self.page.add(row, attention)

    def close(self, left_out: str, stop: StopSignal) -> int:
        """Write the sidecars and the page, and print the summary. Returns 1 where anything has failed, else 0.

        left_out: see `Sources.describe_skipped`. Raises Interrupted.
        """
        options, summary = self.options, self.summary
        notes = (self.sidecars.write(stop) if self.sidecars else "") + left_out
        if summary.turned and not options.upright:
            problem = "say in EXIF that they are stored turned, and were scored as stored, as in training"
            stored = f"{summary.turned} photographs {problem}; --upright turns them"
            log.info("%s", stored)
            if summary.turned > (summary.scored + summary.errors) / 20:
                notes = f"; {stored}{notes}"
        if summary.other_colours and not options.srgb:
            profiles = "photographs have a colour profile other than sRGB, left out as in training"
            log.info("%d %s; --srgb converts them", summary.other_colours, profiles)
        if self.page:
            about = {"upright": options.upright, "num_workers": options.num_workers}
            gallery.write_gallery(options.report, self.trained, self.page, stop=stop, **about)
        written = [str(path) for path in (options.out, options.report) if path]
        written += [f"{options.explain} (overlays: {summary.overlays})"] if options.explain else []
        summary.close(notes, written)
        return int(summary.has_errors or bool(self.sidecars and self.sidecars.faults))


def take_over_rows(table: Table, results: Results) -> set[int]:
    """Add the rows that the table has already. Returns the `path_number` of their photographs and shards."""
    done: set[int] = set()
    for row in table.rows():
        done.update(map(path_number, [row["image"], *shards_of(row["image"])]))
        if results.sidecars:
            results.sidecars.add(row)
        results.add(row, is_earlier=True)
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


def join_shards(batches: Iterable[PhotoBatch], bar: tqdm) -> Iterator[PhotoBatch]:
    """The same photographs, those of a shard in one batch, as their rows are written together. Counts them on the bar."""
    waiting: dict[str, list[ScoredPhoto]] = defaultdict(list)  # by shard
    for batch in batches:
        bar.update(len(batch.photos))
        waiting[batch.shard] += batch.photos
        if not (batch.shard and batch.photos):  # the last batch of a shard is empty
            yield batch._replace(photos=waiting.pop(batch.shard))


def draw_overlays(
    photos: Sequence[ScoredPhoto],
    rows: Sequence[Row],
    folder: Path,
    common: str,
    scale: tuple[float, float],
    upright: bool,
) -> None:
    """Draw the overlays of --explain, and name them in the rows.

    common: the folder of all photographs; overlays lie in `folder` as these lie below it.
    """
    for photo, row in zip(photos, rows, strict=True):
        if photo.attention_maps:
            path, (low, high) = overlay_path(folder, photo.path, common), scale
            title = f"{os.path.basename(photo.path)}: score {row['score']:.3f} ({low:g} to {high:g})"
            is_drawn = draw_overlay(path, photo.path, photo.attention_maps, title, upright)
            row["explanation"] = str(path) if is_drawn else ""


def make_settings(
    options: argparse.Namespace, builder: RowBuilder, precision: Precision, common: str
) -> dict:
    """How the scores are made: the same for all rows of one table. common: see `draw_overlays`."""
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
