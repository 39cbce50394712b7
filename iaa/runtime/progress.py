"""Progress bars, shown on a terminal only."""

from __future__ import annotations

from tqdm import tqdm

from iaa.runtime import distributed


def progress_bar(title: str, images: int, done: int = 0) -> tqdm:
    """A bar of images done, their rate and the time left; rank 0 alone shows it, and only on a terminal."""
    hidden = True if distributed.rank() else None
    shown = {"unit": " images", "leave": False, "disable": hidden, "dynamic_ncols": True}
    return tqdm(desc=title, total=images, initial=done, **shown)
