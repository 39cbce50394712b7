"""Score photographs with trained weights, and say why; or `from predict import Scorer`. Try `--help`."""

from __future__ import annotations

import argparse
import hashlib
import logging
import random
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import checkpoint
from build import pick_device
from command import guarded
from dataset import network_input
from interrupt import Interrupted, Watch
from meters import bar
from option import InputError
from prediction import arguments, pages
from prediction.explain import Look, Looker, background_share, draw, mean_mass
from prediction.photos import Photos, batches, open_rgb
from prediction.scorer import Scorer
from prediction.scoring import Rows, Scored, read_reference, score_all
from prediction.screen import Screen
from prediction.sources import Found, Sources
from prediction.table import Done, Row, Table
from steps import Precision
from trained import CALIBRATION_BATCH, Trained, load_trained

__all__ = ["Scorer", "main"]

log = logging.getLogger("eat")


def main(argv: Sequence[str] | None = None) -> int:
    """Score; returns the exit status: 0, 1 where photographs have an error, 2 for bad input, 128 and more if interrupted."""

    def work() -> int:
        options = arguments.parse(argv)
        arguments.check(options)
        return predict(options)

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
    reference = read_reference(options.reference, trained) if options.reference else None
    looking = bool(options.explain or options.report)
    rows = Rows(trained, reference, explained=bool(options.explain), background=looking)
    other = pages.read_other(options.compare, trained, device) if options.compare else None
    table = Table(options.out, rows.columns) if options.out else None
    with Watch() as watch:
        total = sum(1 for _ in sources) if sources.countable else None
        if total == 0:
            raise InputError(
                f"no photographs in {', '.join(options.paths + options.list)}{_left_out(sources)}"
            )
        if options.calibrate_on:
            calibrate(options, trained, photos, device, watch)
        for note in trained.notes:
            log.info("%s", note)
        low, high = trained.score_range
        log.info(
            "%s trained on %s, scores %g to %g, %s interest points, on %s",
            trained.name, trained.dataset, low, high, trained.points, device,
        )  # fmt: skip
        page = pages.Gallery(options.report_images) if options.report else None
        done = Done(())
        if table is not None:
            table.begin(describe(options, trained), options.append, options.overwrite)
            done = table.done()
            if page is not None:
                for row in table.rows():
                    page.add(row)
        screen = Screen(trained, streaming=table is None)
        try:
            with ExitStack() as stack:
                write = stack.enter_context(table.appending()) if table else None
                looker = stack.enter_context(Looker(trained.model, options.layer)) if looking else None
                shown = stack.enter_context(bar("score", total, len(done)))
                found = (found for found in sources if found.path not in done)
                for scored in score_all(
                    trained, photos, found, pick_precision(options.amp, device),
                    batch_size=options.batch_size, num_workers=options.num_workers, looker=looker, watch=watch,
                ):  # fmt: skip
                    row, attention = finish_row(options, trained, rows, scored)
                    if write is not None:
                        write(row)
                    if page is not None:
                        page.add(row, attention)
                    screen.add(row)
                    shown.update(1)
        finally:
            if table is not None:
                table.finish()
        screen.close(len(done), options.out, _left_out(sources))
        if page is not None:
            pages.write(options, trained, photos, page, other, device, watch)
    return 1 if screen.errors else 0


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
        draw_overlay(path, scored.path, options.upright, scored.looks, title, foreground)
        explanation = str(path)
    return rows.row(scored, background, explanation), attention


def draw_overlay(
    path: Path, photograph: str, upright: bool, looks: dict[str, Look], title: str, foreground
) -> None:
    """Write the picture of where the network looked in a photograph."""
    try:
        picture = open_rgb(photograph, upright, side=640)
    except Exception as error:  # it was there a moment ago
        log.warning(
            "warning: %s: cannot be drawn any more (%s)", photograph, " ".join(str(error).split())[:160]
        )
        return
    picture.thumbnail((640, 640))
    draw(path, picture, looks, "".join(c if c.isprintable() else "?" for c in title), foreground)


def overlay_path(folder: Path, photograph: str) -> Path:
    """Where a photograph's overlay goes: as the photograph lies below this folder, or else below the root."""
    place = Path(photograph).absolute()
    place = Path(*(part for part in place.parts if part != ".."))
    below = (
        place.relative_to(Path.cwd()) if place.is_relative_to(Path.cwd()) else place.relative_to(place.anchor)
    )
    return folder / below.with_name(f"{below.name}.png")


def read_mask(folder: Path, photograph: str) -> tuple[np.ndarray | None, bool]:
    """The foreground (h, w), 0 to 1, of the mask named as the photograph is; and whether there is one."""
    stem = Path(photograph).stem
    for ending in (".png", ".PNG", ".jpg", ".bmp", ".tif", ".webp"):
        if (path := folder / f"{stem}{ending}").is_file():
            try:
                with Image.open(path) as picture:
                    return np.asarray(picture.convert("L"), np.float32) / 255, True
            except Exception as error:
                raise InputError(
                    f"--mask: {path} does not decode ({' '.join(str(error).split())[:160]})"
                ) from None
    log.warning("warning: %s: has no mask in %s, so no share of the background", photograph, folder)
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


def describe(options, trained: Trained) -> dict:
    """How the scores are made: what rows of one table have in common."""
    digest = hashlib.sha256()
    for name, value in trained.model.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return {
        "weights": str(trained.path),
        "network": digest.hexdigest(),
        "model": trained.name,
        "dataset": trained.dataset,
        "score_range": list(trained.score_range),
        "interest_points": trained.points,
        "decode": options.decode,
        "upright": options.upright,
        "reference": options.reference,
        "columns": Rows(
            trained, options.reference, bool(options.explain), bool(options.explain or options.report)
        ).columns,
    }


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
