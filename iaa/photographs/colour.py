"""Colour profiles: which photographs have colours other than sRGB's, and their conversion."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms

MODES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}  # of pixels, by the colour space of their profile


def find_srgb_conversion(picture: Image.Image) -> Callable[[Image.Image], Image.Image] | None:
    """A function that converts a photograph by its colour profile to RGB.

    None if it has no profile, or that of sRGB, or one that cannot be read or does not fit the pixels.
    """
    mode, transform = _read_profile(picture.info.get("icc_profile") or b"")
    is_grey = picture.mode.startswith(("1", "L", "I")) and picture.mode != "LAB"
    if mode != ("L" if is_grey else "CMYK" if picture.mode == "CMYK" else "RGB"):
        return None
    return lambda pixels: ImageCms.applyTransform(pixels.convert(mode), transform)


@lru_cache(maxsize=16)
def _read_profile(profile: bytes) -> tuple[str, ImageCms.ImageCmsTransform | None]:
    """The mode of the pixels, and their transform to sRGB; an empty mode where none is needed or possible."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        mode = MODES[source.profile.xcolor_space.strip()]
        transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
    except Exception:  # damaged profiles raise anything at all
        return "", None
    levels = np.arange(0, 256, 51, np.uint8)
    grid = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(1, -1, 3)
    colours = Image.fromarray(grid).convert(mode)
    converted = ImageCms.applyTransform(colours, transform)
    difference = np.asarray(converted, int) - np.asarray(colours.convert("RGB"), int)
    return (mode, transform) if np.abs(difference).mean() > 1 else ("", None)  # sRGB is written in many ways
