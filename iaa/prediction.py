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
from functools import partial

import numpy as np
import torch
from tqdm import tqdm

from iaa.errors import InputError
from iaa.networks.attention_maps import AttentionRecorder, background_share, mean_map
from iaa.networks.trained_network import TrainedNetwork, load_network
from iaa.options import scoring_options
from iaa.reports import gallery
from iaa.reports.overlays import draw_overlay, overlay_path, read_mask
from iaa.reports.terminal_summary import TerminalSummary
from iaa.runtime import distributed
from iaa.runtime.progress import progress_bar
from iaa.runtime.signals import StopSignal, stop_errors
from iaa.scoring.calibration import calibrate
from iaa.scoring.parquet_parts import ParquetParts
from iaa.scoring.photos import Photos, batches
from iaa.scoring.rows import RowBuilder, ScoredPhoto, read_reference, score_batches
from iaa.scoring.shards import shard_batches
from iaa.scoring.sources import Source, Sources, is_shard, shards_of
from iaa.scoring.table import Row, Table
from iaa.training import checkpoint
from iaa.training.build import pick_device
from iaa.training.steps import Precision

log = logging.getLogger("eat")


def run(options: argparse.Namespace) -> int:
    """Score as the options ask. Returns the exit status. Raises InputError, Interrupted."""
    try:
        prediction = Prediction(options)
        with StopSignal() as stop, stop_errors(stop):
            return prediction.run(stop)
    except BrokenPipeError:  # nobody reads the rows any more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE


class Prediction:
    """Everything that one call needs. options: those of `arguments`. Raises InputError."""

    def __init__(self, options: argparse.Namespace):
        self.options, self.device = options, pick_device(options.gpu_id)
        self.sources = Sources(options.paths, options.list)
        with scoring_options.purpose_errors():
            self.trained = load_network(
                options.weights,
                model=options.model,
                dataset=options.dataset,
                scale=scoring_options.score_range(options.score_min, options.score_max),
                interest_points=options.interest_points,
                will_calibrate=bool(options.calibrate_on),
            )
        # The numbers of files and of shards; None where a list can be read only once.
        self.counts = Counter(source.is_shard for source in self.sources) if self.sources.countable else None
        has_shards = bool(self.counts and self.counts[True])
        if has_shards:
            self._refuse_shards()
        self._refuse_attention()
        self.trained.model.to(self.device)
        self.precision = pick_precision(options.amp, self.device)
        self.photos = Photos(self.trained.resize, options.decode, options.upright)
        reference = None
        if options.reference:
            reference, notes = read_reference(options.reference, self.trained)
            self.trained.notes += notes
        self.recorder = None
        if (options.explain or options.report) and self.trained.points is not None:
            self.recorder = AttentionRecorder(self.trained.model, options.layer)
        is_folder, records = scoring_options.is_folder(options.out), self.recorder is not None
        self.rows = RowBuilder(
            self.trained, reference, bool(options.explain), records, origin=is_folder or has_shards
        )
        self.comparison = None
        if options.compare:
            self.comparison = gallery.read_comparison(options.compare, self.trained, self.device)
        self.table = None
        if options.out:
            self.table = (ParquetParts if is_folder else Table)(options.out, self.rows.columns)
        self.gallery = gallery.Gallery(options.report_images) if options.report else None
        self.summary = TerminalSummary(self.trained.scale, options.out)
        self.hashes: set[int] = set()  # of the names of photographs that have a row, and of shards
        self.turned = 0  # photographs that are stored turned

    def _refuse_attention(self) -> None:
        """Raises InputError for options about the attention of a network that has no deformable layers."""
        for name in ("explain", "layer", "mask"):
            if self.trained.points is None and getattr(self.options, name) not in (None, scoring_options.ALL):
                raise InputError(f"--{name}: {self.trained.name} has no deformable layers; leave it out")

    def _refuse_shards(self) -> None:
        """Raises InputError for options that open photographs again."""
        for name in ("explain", "report"):
            if getattr(self.options, name):
                raise InputError(
                    f"--{name}: photographs in shards cannot be shown; leave it out, or give files"
                )

    def run(self, stop: StopSignal) -> int:
        """Do what the options ask. Returns 1 where a photograph has an error, else 0. Raises Interrupted.

        Each of several processes returns 0 then: torchrun would end the others.
        """
        if self.counts is not None and not self.counts:
            raise InputError(self._no_photographs() + _describe_left_out(self.sources))
        if self.options.calibrate_on:
            self._calibrate(stop)
        self._log_network()
        self._score(stop)
        if self.turned and not self.options.upright:
            log.info(
                "%d photographs say in EXIF that they are stored turned, and were scored as stored, as in training; "
                "--upright turns them",
                self.turned,
            )
        self.summary.close(_describe_left_out(self.sources))
        if self.gallery is not None:
            gallery.write_gallery(
                self.options.report,
                self.trained,
                self.gallery,
                self.comparison,
                partial(self._rescore, stop),
                layer=self.options.layer,
                upright=self.options.upright,
                num_workers=self.options.num_workers,
                stop=stop,
            )
        return int(self.summary.errors + self.summary.errors_before > 0 and distributed.world_size() == 1)

    def _no_photographs(self) -> str:
        return f"no photographs in {', '.join(self.options.paths + self.options.list)}"

    def _calibrate(self, stop: StopSignal) -> None:
        """Estimate the running interest points, and save the network, if that is asked for."""
        options = self.options
        paths, count = options.calibrate_on, options.calibrate_points
        note = calibrate(
            self.trained.model, self.photos, paths, count, self.device, options.num_workers, stop
        )
        self.trained.notes.append(note)
        if options.save_calibrated:
            checkpoint.save(options.save_calibrated, self.trained.model.state_dict())

    def _log_network(self) -> None:
        """Say by which network the scores are made."""
        trained, (low, high) = self.trained, self.trained.scale
        networks = [trained, self.comparison and self.comparison.trained]
        for note in [note for network in networks if network for note in network.notes]:
            log.info("%s", note)
        scale = f"trained on {trained.dataset}, scores {low:g} to {high:g}"
        points = "" if trained.points is None else f", {trained.points} interest points"
        log.info("%s %s%s, on %s", trained.name, scale, points, self.device)

    def _score(self, stop: StopSignal) -> None:
        """Score the photographs that have no row yet: files, then shards."""
        options, shards, write = self.options, [], lambda *_, **__: None
        with ExitStack() as stack:
            if self.table is not None:
                writing = self.table.writing(self._settings(), options.append, options.overwrite)
                write = stack.enter_context(writing)
                self._take_over_rows()
            if self.recorder is not None:
                stack.enter_context(self.recorder)
            total = None if self.counts is None or self.counts[True] else self.counts[False]
            shown = stack.enter_context(progress_bar("score", total, self.summary.rows_before))
            files = self._files_to_score(shards)
            photo_batches = batches(self.photos, files, options.batch_size, options.num_workers)
            scored_batches = score_batches(self.trained, photo_batches, self.precision, self.recorder, stop)
            for batch, results in scored_batches:
                self.turned += batch.turned
                for scored in results:
                    row, attention = self._finish_row(scored)
                    write(row)
                    if self.gallery is not None:
                        self.gallery.add(row, attention)
                    self.summary.add(row)
                    shown.update(1)
            if not self.hashes:
                raise InputError(self._no_photographs())
            if shards:
                self._score_shards(shards[distributed.rank() :: distributed.world_size()], write, shown, stop)

    def _files_to_score(self, shards: list[str]) -> Iterator[Source]:
        """This process's share of the files that have no row yet; all such shards are added to `shards`."""
        number, key = 0, self.table.key if self.table is not None else str
        for source in self.sources.without(self.hashes, key):
            if source.is_shard:
                shards.append(source.path)
            else:
                if number % distributed.world_size() == distributed.rank():
                    yield source
                number += 1

    def _score_shards(
        self, shards: list[str], write: Callable[..., None], shown: tqdm, stop: StopSignal
    ) -> None:
        """Score shards; the rows of each are written when it is done, all at once."""
        self._refuse_shards()
        waiting: dict[str, list[ScoredPhoto]] = defaultdict(list)
        photo_batches = shard_batches(self.photos, shards, self.options.batch_size, self.options.num_workers)
        for batch, results in score_batches(self.trained, photo_batches, self.precision, stop=stop):
            self.turned += batch.turned
            waiting[batch.shard] += results
            shown.update(len(results))
            if batch.is_last:
                rows = [self.rows.build(scored) for scored in waiting.pop(batch.shard)]
                write(*rows, shard=batch.shard)
                for row in rows:
                    self.summary.add(row)

    def _take_over_rows(self) -> None:
        """Count the rows that the table has already; their photographs are not scored again."""
        for row in self.table.rows():
            path = os.path.abspath(row["image"])
            self.hashes.update(hash(self.table.key(name)) for name in (path, *shards_of(path)))
            self.summary.count_earlier(row)
            if self.gallery is not None:
                self.gallery.add(row)
        self.hashes.update(map(hash, self.table.shards))
        self.summary.shards_before = len(self.table.shards)

    def _finish_row(self, scored: ScoredPhoto) -> tuple[Row, np.ndarray | None]:
        """A photograph's row, and its attention map, if that was recorded. Draws the overlay."""
        if not scored.attention_maps:
            return self.rows.build(scored), None
        options, background, overlay = self.options, None, ""
        attention = mean_map(list(scored.attention_maps.values()))
        foreground = read_mask(options.mask, scored.path) if options.mask else None
        if foreground is not None or not options.mask:
            background = background_share(attention, foreground)
        if options.explain:
            path, maps = overlay_path(options.explain, scored.path), scored.attention_maps
            score, (low, high) = self.rows.build(scored)["score"], self.trained.scale
            title = f"{os.path.basename(scored.path)}: score {score:.3f} ({low:g} to {high:g})"
            if draw_overlay(path, scored.path, maps, title, foreground, options.upright):
                overlay = str(path)
        return self.rows.build(scored, background, overlay), attention

    def _rescore(
        self,
        stop: StopSignal,
        network: TrainedNetwork,
        images: Sequence[str],
        recorder: AttentionRecorder | None,
    ) -> Iterator[ScoredPhoto]:
        """Score photographs once more, for the page, in float32."""
        photos = Photos(network.resize, self.options.decode, self.options.upright)
        photo_batches = batches(
            photos, map(Source, images), self.options.batch_size, self.options.num_workers
        )
        with progress_bar("the page", len(images)) as shown:
            for _, results in score_batches(network, photo_batches, Precision(self.device), recorder, stop):
                shown.update(len(results))
                yield from results

    def _settings(self) -> dict:
        """How the scores are made: the same for all rows of one table."""
        options, trained, reference = self.options, self.trained, self.rows.reference
        settings = {
            "weights": str(trained.path),
            "model": trained.name,
            "dataset": trained.dataset,
            "score_range": list(trained.scale),
            "interest_points": trained.points,
            "columns": self.rows.columns,
            "decode": options.decode,
            "upright": options.upright,
            "precision": str(self.precision.dtype or torch.float32),
            "reference": None if reference is None else _digest(reference.tobytes()),
            "network": _digest(b"".join(_bytes_of(trained.model))),
        }
        if self.recorder is not None:
            settings |= {"layer": options.layer, "mask": options.mask and str(options.mask)}
        if trained.points == "batch":
            settings["batch_size"] = options.batch_size
        return settings


def pick_precision(amp: str, device: torch.device) -> Precision:
    """float32, or bf16 by `--amp`."""
    has_bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return Precision(device, torch.bfloat16 if amp == "bf16" or (amp == "auto" and has_bf16) else None)


def _bytes_of(model: torch.nn.Module) -> Iterator[bytes]:
    """The names and values of its parameters and buffers."""
    for name, value in model.state_dict().items():
        yield name.encode()
        yield value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def _digest(content: bytes) -> str:
    """The first 16 digits of SHA-256."""
    return hashlib.sha256(content).hexdigest()[:16]


def _describe_left_out(sources: Sources) -> str:
    if not sources.left_out:
        return ""
    counts = ", ".join(f"{count} {ending}" for ending, count in sources.left_out.most_common(5))
    hint = " (shards are taken by name: 'FOLDER/*.tar')" * any(map(is_shard, sources.left_out))
    return f"; files in folders that do not end as pictures do were left out: {counts}" + hint
