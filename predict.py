"""Score photographs with trained weights, and say why; or `from predict import Scorer`. Try `--help`."""

from __future__ import annotations

import argparse
import hashlib
import logging
import os
import random
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from commands.bars import bar
from commands.errors import guarded
from commands.signals import Interrupted, Watch, signals_first
from dataset import network_input
from inference import arguments, pages
from inference.explain import Look, Looker, background_share, draw, mean_mass
from inference.photos import Photos, batches, open_rgb
from inference.scorer import Scorer
from inference.scoring import Rows, Scored, read_reference, score_all
from inference.screen import Screen
from inference.sources import Found, Sources
from inference.table import Done, Row, Table
from inference.trained import CALIBRATION_BATCH, Trained, load_trained
from option import InputError
from training import checkpoint
from training.build import pick_device
from training.steps import Precision

__all__ = ["Scorer", "main"]

log = logging.getLogger("eat")


def main(argv: Sequence[str] | None = None) -> int:
    """Score; returns the exit status: 0, 1 where photographs have an error, 2 for bad input, 128 and more if interrupted."""

    def work() -> int:
        options = arguments.parse(argv)
        arguments.check(options)
        try:
            return predict(options)
        except BrokenPipeError:  # nobody reads the rows any more
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 128 + signal.SIGPIPE

    return guarded(
        "predict.py", work, "rows written to --out are kept; with --append the same command goes on"
    )


def predict(options: argparse.Namespace) -> int:
    """Do what the options ask. Returns 1 where a photograph has an error, else 0."""
    device = pick_device(options.gpu_id)
    sources = Sources(options.paths, options.list)
    trained = load_trained(
        options.weights,
        model=options.model,
        dataset=options.dataset,
        score_range=options.score_range,
        interest_points=options.interest_points,
        will_calibrate=bool(options.calibrate_on),
    )
    trained.model.to(device)
    photos = Photos(trained.resize, options.decode, options.upright)
    precision = pick_precision(options.amp, device)
    reference = read_reference(options.reference, trained) if options.reference else None
    looking = bool(options.explain or options.report)
    if reference is not None:
        trained.notes += reference.notes
    rows = Rows(trained, reference and reference.scores, explained=bool(options.explain), background=looking)
    other = pages.read_other(options.compare, trained, device) if options.compare else None
    table = Table(options.out, rows.columns) if options.out else None
    with Watch() as watch, signals_first(watch):
        total = count(sources, watch) if sources.countable else None
        if total == 0:
            raise InputError(
                f"no photographs in {', '.join(options.paths + options.list)}{_left_out(sources)}"
            )
        if options.calibrate_on:
            calibrate(options, trained, photos, device, watch)
        for note in trained.notes + (other.trained.notes if other and other.trained else []):
            log.info("%s", note)
        low, high = trained.score_range
        log.info(
            "%s trained on %s, scores %g to %g, %s interest points, on %s",
            trained.name, trained.dataset, low, high, trained.points, device,
        )  # fmt: skip
        gallery = pages.Gallery(options.report_images) if options.report else None
        screen = Screen(trained, options.out)
        seen = Done()
        with ExitStack() as stack:
            write = None
            if table is not None:
                about = describe(options, trained, rows, precision)
                write = stack.enter_context(table.writing(about, options.append, options.overwrite))
                for row in table.rows():
                    seen.add(table.key(os.path.abspath(row["image"])))
                    screen.before(row)
                    if gallery is not None:
                        gallery.add(row)
            looker = stack.enter_context(Looker(trained.model, options.layer)) if looking else None
            shown = stack.enter_context(bar("score", total, len(seen)))
            key = table.key if table is not None else str
            found = (one for one in sources if seen.add(key(os.path.abspath(one.path))))
            for scored in score_all(
                trained, photos, found, precision,
                batch_size=options.batch_size, num_workers=options.num_workers, looker=looker, watch=watch,
            ):  # fmt: skip
                row, attention = finish_row(options, trained, rows, scored)
                if write is not None:
                    write(row)
                if gallery is not None:
                    gallery.add(row, attention)
                screen.add(row)
                shown.update(1)
            if not len(seen):
                raise InputError(f"no photographs in {', '.join(options.paths + options.list)}")
        screen.close(_left_out(sources))
        if gallery is not None:
            pages.write(options, trained, photos, gallery, other, device, watch)
    return 1 if screen.any_errors else 0


def count(sources: Sources, watch: Watch) -> int:
    """How many there are. Raises Interrupted when a signal comes."""
    number = 0
    for number, _ in enumerate(sources, 1):  # noqa: B007  the last is the count
        if watch.received:
            raise Interrupted(watch.received)
    return number


def finish_row(options, trained: Trained, rows: Rows, scored: Scored) -> tuple[Row, np.ndarray | None]:
    """A photograph's row, and the map of its attention, if it was looked for; its overlay is drawn."""
    if not scored.looks:
        return rows.row(scored), None
    attention = mean_mass(list(scored.looks.values()))
    foreground, known = read_mask(options.mask, scored.path) if options.mask else (None, True)
    background = background_share(attention, foreground) if known else None
    explanation = ""
    if options.explain:
        path = overlay_path(options.explain, scored.path)
        score = float(trained.scores(scored.outputs[None].astype(np.float64))[0])
        low, high = trained.score_range
        title = f"{Path(scored.path).name}: score {score:.3f} ({low:g} to {high:g})"
        if draw_overlay(path, scored.path, options.upright, scored.looks, title, foreground):
            explanation = str(path)
    return rows.row(scored, background, explanation), attention


def draw_overlay(
    path: Path, photograph: str, upright: bool, looks: dict[str, Look], title: str, foreground
) -> bool:
    """Write the picture of where the network looked in a photograph. False, with a warning, where that fails."""
    try:
        picture = open_rgb(photograph, upright, side=640)
        picture.thumbnail((640, 640))
        draw(path, picture, looks, "".join(c if c.isprintable() else "?" for c in title), foreground)
    except Exception as error:  # its score is worth more than its picture
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        log.warning(
            "warning: %s: its overlay could not be drawn (%s)", photograph, " ".join(reason.split())[:160]
        )
        return False
    return True


def overlay_path(folder: Path, photograph: str) -> Path:
    """Where a photograph's overlay goes: as the photograph lies below this folder; `_root` stands for the root."""
    place, here = Path(os.path.abspath(photograph)), Path.cwd()
    below = place.relative_to(here) if place.is_relative_to(here) else Path("_root", *place.parts[1:])
    name = below.name
    if len(os.fsencode(name)) > 200:  # file systems take 255 bytes
        digest = hashlib.blake2b(os.fsencode(name), digest_size=8).hexdigest()
        name = f"{os.fsencode(name)[:160].decode('utf-8', 'ignore')}-{digest}"
    return folder / below.with_name(f"{name}.png")


def read_mask(folder: Path, photograph: str) -> tuple[np.ndarray | None, bool]:
    """The foreground (h, w), 0 to 1, of the mask named as the photograph is; and whether there is one, else with a warning."""
    stem = Path(photograph).stem
    try:
        for ending in (".png", ".PNG", ".jpg", ".bmp", ".tif", ".webp"):
            if (path := folder / f"{stem}{ending}").is_file():
                with Image.open(path) as picture:
                    return np.asarray(picture.convert("L"), np.float32) / 255, True
        reason = f"has no mask in {folder}"
    except Exception as error:  # decoders raise anything at all on a damaged file
        reason = f"its mask does not decode ({' '.join(str(error).split())[:160]})"
    log.warning("warning: %s: %s, so no share of the background", photograph, reason)
    return None, False


def calibrate(options, trained: Trained, photos: Photos, device: torch.device, watch: Watch) -> None:
    """Estimate the running interest points from photographs of `--calibrate_on`, drawn at random."""
    sources = Sources(options.calibrate_on)
    drawn = draw_some(sources, options.calibrate_points)
    shown = bar("calibrate", len(drawn))
    counts = {"used": 0, "left out": 0}

    def inputs() -> Iterator[torch.Tensor]:
        for batch in batches(photos, drawn, CALIBRATION_BATCH, options.num_workers):
            if watch.received:
                raise Interrupted(watch.received)
            shown.update(len(batch.paths))
            counts["used"] += len(batch.images)
            counts["left out"] += sum(map(bool, batch.errors))
            if len(batch.images):
                images = batch.images.to(device)
                yield network_input(images, torch.zeros(len(images), dtype=torch.bool, device=device))

    with shown:
        try:
            trained.calibrate(inputs())
        except ValueError as error:
            if isinstance(error, InputError):
                raise
            raise InputError(
                f"--calibrate_on {' '.join(options.calibrate_on)}: no photograph there decodes"
            ) from None
    trained.notes.append(
        f"running interest points calibrated on {counts['used']} photographs"
        + (f"; {counts['left out']} could not be read" if counts["left out"] else "")
    )
    if options.save_calibrated:
        checkpoint.save(options.save_calibrated, trained.model.state_dict())


def draw_some(found: Iterable[Found], count: int, seed: int = 0) -> list[Found]:
    """`count` of them at random, in one pass; all where there are no more. In their order."""
    rng, drawn = random.Random(seed), []
    for number, one in enumerate(found):
        if number < count:
            drawn.append((number, one))
        elif (place := rng.randrange(number + 1)) < count:
            drawn[place] = (number, one)
    return [one for _, one in sorted(drawn)]


def describe(options, trained: Trained, rows: Rows, precision: Precision) -> dict:
    """How the scores are made: what the rows of one table have in common."""
    digest = hashlib.sha256()
    for name, value in trained.model.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    about = {
        "weights": str(trained.path),
        "model": trained.name,
        "dataset": trained.dataset,
        "score_range": list(trained.score_range),
        "interest_points": trained.points,
        "columns": rows.columns,
        "decode": options.decode,
        "upright": options.upright,
        "precision": str(precision.dtype or torch.float32),
        "reference": None
        if rows.reference is None
        else hashlib.sha256(rows.reference.tobytes()).hexdigest()[:16],
        "network": digest.hexdigest()[:16],
    }
    if "attention_background" in rows.columns:
        about |= {"layer": options.layer, "mask": options.mask and str(options.mask)}
    if trained.points == "batch":
        about["batch_size"] = options.batch_size
    return about


def pick_precision(amp: str, device: torch.device) -> Precision:
    """float32, or bf16 by `--amp`."""
    has_bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return Precision(device, torch.bfloat16 if amp == "bf16" or (amp == "auto" and has_bf16) else None)


def _left_out(sources: Sources) -> str:
    if not sources.left_out:
        return ""
    counts = ", ".join(f"{count} {ending}" for ending, count in sources.left_out.most_common(5))
    return f"; files in folders that do not end as pictures do were left out: {counts}"


if __name__ == "__main__":
    sys.exit(main())
