"""Shards of photographs."""

import io
import json
import tarfile

import numpy as np
from PIL import Image


def picture(seed, form="PNG"):
    """The bytes of a picture of noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (12, 10, 3), np.uint8)
    Image.fromarray(pixels).save(file := io.BytesIO(), form)
    return file.getvalue()


def make_shard(path, members, mode="w"):
    """A tar of (name, content), in their order; where the header of each begins."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:
        for name, content in members:
            header = tarfile.TarInfo(name)
            header.size = len(content)
            tar.addfile(header, io.BytesIO(content))
    with tarfile.open(path) as tar:
        return [member.offset for member in tar.getmembers()]


def five(start=0):
    """Members as img2dataset writes them: each picture with its JSON text and its caption."""
    for number in range(start, start + 5):
        said = {"url": f"http://example.org/{number}.png", "key": f"{number:05d}", "width": 10}
        yield f"{number:05d}.png", picture(number)
        yield f"{number:05d}.json", json.dumps(said).encode()
        yield f"{number:05d}.txt", b"a caption"
