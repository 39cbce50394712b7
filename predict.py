"""Score photographs with trained weights, and say why; or `from predict import Scorer`. Try `--help`."""

from __future__ import annotations

import argparse
import hashlib
import logging
import os
import random
import signal
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import models
from commands import distributed
from commands.bars import bar
from commands.errors import guarded
from commands.signals import Interrupted, Watch, signals_first
from inference import arguments, pages
from inference.explain import Looker, background_share, draw, mean_mass
from inference.parts import Parts
from inference.photos import Photos, batches, open_rgb
from inference.scorer import Scorer
from inference.scoring import Rows, Scored, read_reference, score_all, score_shards, unturned_input
from inference.screen import Screen
from inference.sources import Found, Sources, is_shard, shards_of
from inference.table import Row, Table
from option import InputError
from photographs.decode import open_image
from training import checkpoint
from training.build import pick_device
from training.steps import Precision

__all__ = ["Scorer", "main"]

log = logging.getLogger("eat")

CALIBRATION_BATCH = 16  # as in the released training


def main(argv: Sequence[str] | None = None) -> int:
    """Score; returns the exit status: 0, 1 where photographs have an error, 2 for bad input, 128 and more if interrupted."""

    def work() -> int:
        options = arguments.parse(argv)
        arguments.check(options)
        try:
            prediction = Prediction(options)
            with Watch() as watch, signals_first(watch):
                return prediction.run(watch)
        except BrokenPipeError:  # nobody reads the rows any more
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 128 + signal.SIGPIPE

    return guarded(
        "predict.py", work, "rows written to --out are kept; with --append the same command goes on"
    )


class Prediction:
    """Photographs on their way to rows, and those to the table, the screen and the page. Raises InputError."""

    def __init__(self, options: argparse.Namespace):
        self.options, self.device = options, pick_device(options.gpu_id)
        self.sources = Sources(options.paths, options.list)
        self.trained = arguments.load(options)
        # How many files there are, and how many shards; None where a list can be read but once.
        self.counts = Counter(f.is_shard for f in self.sources) if self.sources.countable else None
        has_shards = bool(self.counts and self.counts[True])
        if has_shards:
            self.refuse_shards()
        self.refuse_to_look()
        self.trained.model.to(self.device)
        self.precision = pick_precision(options.amp, self.device)
        reference = None
        if options.reference:
            reference, notes = read_reference(options.reference, self.trained)
            self.trained.notes += notes
        self.looking = bool(options.explain or options.report) and self.trained.points is not None
        parts, explained = arguments.is_folder(options.out), bool(options.explain)
        self.rows = Rows(self.trained, reference, explained, self.looking, origin=parts or has_shards)
        self.other = pages.read_other(options.compare, self.trained, self.device) if options.compare else None
        self.table = (Parts if parts else Table)(options.out, self.rows.columns) if options.out else None
        self.gallery = pages.Gallery(options.report_images) if options.report else None
        self.screen, self.seen = Screen(self.trained, options.out), set()
        self.nothing = f"no photographs in {', '.join(options.paths + options.list)}"

    def refuse_to_look(self) -> None:
        """Raises InputError for options of where a network looks that has no deformable layers."""
        for name in ("explain", "layer", "mask"):
            if self.trained.points is None and getattr(self.options, name) not in (None, arguments.ALL):
                raise InputError(f"--{name}: {self.trained.name} has no deformable layers; leave it out")

    def refuse_shards(self) -> None:
        """Raises InputError for options that open photographs again."""
        for name in ("explain", "report"):
            if getattr(self.options, name):
                raise InputError(
                    f"--{name}: photographs in shards cannot be shown; leave it out, or give files"
                )

    def run(self, watch: Watch) -> int:
        """Do what the options ask. Returns 1 where a photograph has an error, else 0. Raises Interrupted.

        Of several processes each returns 0 then, for torchrun would end the others.
        """
        if self.counts is not None and not self.counts:
            raise InputError(self.nothing + _left_out(self.sources))
        if self.options.calibrate_on:
            self.calibrate(watch)
        self.tell()
        self.score(watch)
        self.screen.close(_left_out(self.sources))
        if self.gallery is not None:
            pages.write(self.options, self.trained, self.gallery, self.other, self.device, watch)
        return int(self.screen.errors + self.screen.errors_before > 0 and distributed.world() == 1)

    def tell(self) -> None:
        """Say by which network the scores are made."""
        trained, (low, high) = self.trained, self.trained.score_range
        for note in trained.notes + (self.other.trained.notes if self.other and self.other.trained else []):
            log.info("%s", note)
        scale = f"trained on {trained.dataset}, scores {low:g} to {high:g}"
        points = "" if trained.points is None else f", {trained.points} interest points"
        log.info("%s %s%s, on %s", trained.name, scale, points, self.device)

    def score(self, watch: Watch) -> None:
        """Score the photographs that have no row yet: files, then shards."""
        options, shards, write = self.options, [], lambda *_, **__: None
        with ExitStack() as stack:
            if self.table is not None:
                writing = self.table.writing(self.describe(), options.append, options.overwrite)
                write = stack.enter_context(writing)
                self.take_in()
            looker = stack.enter_context(Looker(self.trained.model, options.layer)) if self.looking else None
            total = None if self.counts is None or self.counts[True] else self.counts[False]
            shown = stack.enter_context(bar("score", total, self.screen.rows_before))
            for scored in score_all(
                self.trained, self.own_files(shards), options, self.precision, watch, looker
            ):
                row, attention = self.finish_row(scored)
                write(row)
                if self.gallery is not None:
                    self.gallery.add(row, attention)
                self.screen.add(row)
                shown.update(1)
            if not self.seen:
                raise InputError(self.nothing)
            if shards:
                self.score_shards(shards[distributed.rank() :: distributed.world()], write, shown, watch)

    def own_files(self, shards: list[str]) -> Iterator[Found]:
        """This process's share of the files that have no row yet; all such shards go to the list."""
        number, key = 0, self.table.key if self.table is not None else str
        for found in self.sources.unseen(self.seen, key):
            if found.is_shard:
                shards.append(found.path)
            else:
                if number % distributed.world() == distributed.rank():
                    yield found
                number += 1

    def score_shards(self, shards: list[str], write: Callable[..., None], shown: tqdm, watch: Watch) -> None:
        """Score shards; the rows of each are written when it is done, all at once."""
        self.refuse_shards()
        waiting: dict[str, list[Scored]] = defaultdict(list)
        for batch, scored in score_shards(self.trained, shards, self.options, self.precision, watch):
            waiting[batch.shard] += scored
            shown.update(len(scored))
            if batch.is_last:
                rows = [self.rows.row(one) for one in waiting.pop(batch.shard)]
                write(*rows, shard=batch.shard)
                for row in rows:
                    self.screen.add(row)

    def take_in(self) -> None:
        """What the table has already."""
        for row in self.table.rows():
            place = os.path.abspath(row["image"])
            self.seen.update(hash(self.table.key(path)) for path in (place, *shards_of(place)))
            self.screen.before(row)
            if self.gallery is not None:
                self.gallery.add(row)
        self.seen.update(map(hash, self.table.shards))
        self.screen.shards_before = len(self.table.shards)

    def finish_row(self, scored: Scored) -> tuple[Row, np.ndarray | None]:
        """A photograph's row, and the map of its attention, if it was looked for; its overlay is drawn."""
        if not scored.looks:
            return self.rows.row(scored), None
        attention = mean_mass(list(scored.looks.values()))
        foreground, known = read_mask(self.options.mask, scored.path) if self.options.mask else (None, True)
        background = background_share(attention, foreground) if known else None
        drawn = self.draw_overlay(scored, foreground) if self.options.explain else ""
        return self.rows.row(scored, background, drawn), attention

    def draw_overlay(self, scored: Scored, foreground: np.ndarray | None) -> str:
        """The picture of where the network looked in a photograph; empty, with a warning, where that fails."""
        path = overlay_path(self.options.explain, scored.path)
        score = float(self.trained.scores(scored.outputs[None].astype(np.float64))[0])
        low, high = self.trained.score_range
        title = f"{Path(scored.path).name}: score {score:.3f} ({low:g} to {high:g})"
        try:
            picture = open_rgb(scored.path, self.options.upright, side=640)
            picture.thumbnail((640, 640))
            draw(
                path, picture, scored.looks, "".join(c if c.isprintable() else "?" for c in title), foreground
            )
        except Exception as error:  # its score is worth more than its picture
            reason = " ".join(str(getattr(error, "strerror", None) or error).split())[:160]
            log.warning("warning: %s: its overlay could not be drawn (%s)", scored.path, reason)
            return ""
        return str(path)

    def calibrate(self, watch: Watch) -> None:
        """Estimate the running interest points from photographs of `--calibrate_on`, drawn at random."""
        options, trained = self.options, self.trained
        photos = Photos(trained.resize, options.decode, options.upright)
        drawn = draw_some(Sources(options.calibrate_on), options.calibrate_points)
        if any(found.is_shard for found in drawn):
            raise InputError("--calibrate_on: takes photographs as files, not shards")
        used = 0

        def inputs() -> Iterator[torch.Tensor]:
            nonlocal used
            for batch in batches(photos, drawn, CALIBRATION_BATCH, options.num_workers):
                if watch.received:
                    raise Interrupted(watch.received)
                shown.update(len(batch.paths))
                used += len(batch.images)
                if len(batch.images):
                    yield unturned_input(batch.images, trained.model, self.device)

        with bar("calibrate", len(drawn)) as shown:
            try:
                models.calibrate_points(trained.model, inputs())
            except InputError:
                raise
            except ValueError:
                given = " ".join(options.calibrate_on)
                raise InputError(f"--calibrate_on {given}: no photograph there decodes") from None
        left_out = f"; {len(drawn) - used} could not be read" if used < len(drawn) else ""
        trained.notes.append(f"running interest points calibrated on {used} photographs{left_out}")
        if options.save_calibrated:
            checkpoint.save(options.save_calibrated, trained.model.state_dict())

    def describe(self) -> dict:
        """How the scores are made: what the rows of one table have in common."""
        options, trained, reference = self.options, self.trained, self.rows.reference
        about = {
            "weights": str(trained.path),
            "model": trained.name,
            "dataset": trained.dataset,
            "score_range": list(trained.score_range),
            "interest_points": trained.points,
            "columns": self.rows.columns,
            "decode": options.decode,
            "upright": options.upright,
            "precision": str(self.precision.dtype or torch.float32),
            "reference": None if reference is None else digest(reference.tobytes()),
            "network": digest(b"".join(bytes_of(trained.model))),
        }
        if self.looking:
            about |= {"layer": options.layer, "mask": options.mask and str(options.mask)}
        if trained.points == "batch":
            about["batch_size"] = options.batch_size
        return about


def overlay_path(folder: Path, photograph: str) -> Path:
    """Where a photograph's overlay goes: as the photograph lies below this folder; `_root` stands for the root."""
    place, here = Path(os.path.abspath(photograph)), Path.cwd()
    below = place.relative_to(here) if place.is_relative_to(here) else Path("_root", *place.parts[1:])
    name = below.name
    if len(encoded := os.fsencode(name)) > 200:  # file systems take 255 bytes
        name = (
            f"{encoded[:160].decode('utf-8', 'ignore')}-{hashlib.blake2b(encoded, digest_size=8).hexdigest()}"
        )
    return folder / below.with_name(f"{name}.png")


def read_mask(folder: Path, photograph: str) -> tuple[np.ndarray | None, bool]:
    """The foreground (h, w), 0 to 1, of the mask named as the photograph is; and whether there is one, else with a warning."""
    stem = Path(photograph).stem
    try:
        for ending in (".png", ".PNG", ".jpg", ".bmp", ".tif", ".webp"):
            if (path := folder / f"{stem}{ending}").is_file():
                with open_image(path) as picture:
                    return np.asarray(picture.convert("L"), np.float32) / 255, True
        reason = f"has no mask in {folder}"
    except Exception as error:  # decoders raise anything at all on a damaged file
        reason = f"its mask does not decode ({' '.join(str(error).split())[:160]})"
    log.warning("warning: %s: %s, so no share of the background", photograph, reason)
    return None, False


def draw_some(found: Iterable[Found], count: int, seed: int = 0) -> list[Found]:
    """`count` of them at random, in one pass; all where there are no more. In their order."""
    rng, drawn = random.Random(seed), []
    for number, one in enumerate(found):
        if number < count:
            drawn.append((number, one))
        elif (place := rng.randrange(number + 1)) < count:
            drawn[place] = (number, one)
    return [one for _, one in sorted(drawn)]


def bytes_of(model: torch.nn.Module) -> Iterator[bytes]:
    """The names and values of its parameters and buffers."""
    for name, value in model.state_dict().items():
        yield name.encode()
        yield value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def digest(content: bytes) -> str:
    """SHA-256, its first 16 digits."""
    return hashlib.sha256(content).hexdigest()[:16]


def pick_precision(amp: str, device: torch.device) -> Precision:
    """float32, or bf16 by `--amp`."""
    has_bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return Precision(device, torch.bfloat16 if amp == "bf16" or (amp == "auto" and has_bf16) else None)


def _left_out(sources: Sources) -> str:
    if not sources.left_out:
        return ""
    counts = ", ".join(f"{count} {ending}" for ending, count in sources.left_out.most_common(5))
    hint = " (shards are taken by name: 'FOLDER/*.tar')" * any(map(is_shard, sources.left_out))
    return f"; files in folders that do not end as pictures do were left out: {counts}" + hint


if __name__ == "__main__":
    sys.exit(main())
