"""The pictures of `--explain`, one for each photograph, and the masks of `--mask`."""

from __future__ import annotations

import hashlib
import logging
import os
from pathlib import Path

import numpy as np

from iaa.networks.attention_maps import draw
from iaa.photographs.decode import open_image
from iaa.scoring.photos import open_rgb
from iaa.scoring.rows import ScoredPhoto

log = logging.getLogger("eat")

SIDE = 640  # pixels of the photograph's longer side


def draw_overlay(
    folder: Path,
    scored: ScoredPhoto,
    score: float,
    score_range: tuple[float, float],
    foreground: np.ndarray | None,
    upright: bool,
) -> str:
    """Draw where the network looked in a photograph; returns the file's path, or "" with a warning where that fails.

    foreground: of its mask, see `read_mask`.
    """
    path, (low, high) = overlay_path(folder, scored.path), score_range
    title = f"{Path(scored.path).name}: score {score:.3f} ({low:g} to {high:g})"
    title = "".join(character if character.isprintable() else "?" for character in title)
    try:
        picture = open_rgb(scored.path, upright, side=SIDE)
        picture.thumbnail((SIDE, SIDE))
        draw(path, picture, scored.attention_maps, title, foreground)
    except Exception as error:  # the score is worth more than its picture
        reason = " ".join(str(getattr(error, "strerror", None) or error).split())[:160]
        log.warning("warning: %s: its overlay could not be drawn (%s)", scored.path, reason)
        return ""
    return str(path)


def overlay_path(folder: Path, photograph: str) -> Path:
    """The overlay's path: in `folder`, as the photograph lies below the working folder, else below `_root`."""
    path, here = Path(os.path.abspath(photograph)), Path.cwd()
    below = path.relative_to(here) if path.is_relative_to(here) else Path("_root", *path.parts[1:])
    name = below.name
    if len(encoded := os.fsencode(name)) > 200:  # file systems take 255 bytes
        digest = hashlib.blake2b(encoded, digest_size=8).hexdigest()
        name = f"{encoded[:160].decode('utf-8', 'ignore')}-{digest}"
    return folder / below.with_name(f"{name}.png")


def read_mask(folder: Path, photograph: str) -> np.ndarray | None:
    """The foreground (h, w), 0 to 1, of the mask named as the photograph is; None, with a warning, where there is none."""
    stem = Path(photograph).stem
    try:
        for ending in (".png", ".PNG", ".jpg", ".bmp", ".tif", ".webp"):
            if (path := folder / f"{stem}{ending}").is_file():
                with open_image(path) as picture:
                    return np.asarray(picture.convert("L"), np.float32) / 255
        reason = f"has no mask in {folder}"
    except Exception as error:  # decoders raise anything at all on a damaged file
        reason = f"its mask does not decode ({' '.join(str(error).split())[:160]})"
    log.warning("warning: %s: %s, so no share of the background", photograph, reason)
    return None
