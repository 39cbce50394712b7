"""Colour profiles: those other than sRGB are found, and converted where asked."""

import io

import numpy as np
import pytest
from helpers.data import SRGB, SWAPPED
from PIL import Image

from iaa.photographs.colour import find_srgb_conversion
from iaa.photographs.decode import Resize, read_pil
from iaa.photographs.inspection import inspect_file
from iaa.scoring.photos import Photos

PIXELS = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)


@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize(
    "profile", [None, SRGB, SWAPPED, b"damaged"], ids=["none", "srgb", "other", "damaged"]
)
def test_only_other_profiles_are_found(tmp_path, ending, profile):
    kwargs = {"icc_profile": profile} if profile else {}
    Image.fromarray(PIXELS).save(tmp_path / f"a.{ending}", **kwargs)
    assert inspect_file(tmp_path, f"a.{ending}").kinds == ("other colours" if profile is SWAPPED else "plain")


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_a_photograph_is_converted_where_asked(tmp_path, mode):
    picture, path = Image.fromarray(PIXELS).convert(mode), tmp_path / "a.png"
    picture.save(path, icc_profile=SWAPPED)
    resize = Resize(16, "bicubic")
    photo, pixels = Photos(resize)[path]
    assert photo.other_colours
    np.testing.assert_array_equal(pixels, read_pil(path, resize))  # as in training
    photo, converted = Photos(resize, srgb=True)[path]
    assert photo.other_colours
    assert np.abs(converted.astype(int) - pixels[..., [1, 0, 2]]).max() <= 4


def test_the_fast_decoder_converts_too(tmp_path):
    Image.fromarray(PIXELS).save(tmp_path / "a.jpg", icc_profile=SWAPPED)
    resize = Resize(16, "bicubic")
    pixels = [Photos(resize, decoder, srgb=True)[tmp_path / "a.jpg"][1] for decoder in ("pil", "fast")]
    np.testing.assert_array_equal(*pixels)


def test_a_profile_of_other_pixels_is_none():
    picture = Image.new("L", (2, 2))
    picture.info["icc_profile"] = SWAPPED
    assert find_srgb_conversion(picture) is None
    picture = Image.open(io.BytesIO(_bytes(Image.new("CMYK", (2, 2)), icc_profile=SWAPPED)))
    assert find_srgb_conversion(picture) is None


def _bytes(picture, **kwargs):
    picture.save(file := io.BytesIO(), "JPEG", **kwargs)
    return file.getvalue()
