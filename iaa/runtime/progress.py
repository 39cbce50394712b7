"""Progress, shown on a terminal and nowhere else."""

from __future__ import annotations

from tqdm import tqdm

from iaa.runtime import distributed


def bar(title: str, images: int, done: int = 0) -> tqdm:
    """A bar that counts images, with their rate and the time left; none but rank 0's, and only on a terminal."""
    hidden = True if distributed.rank() else None
    shown = {"unit": " images", "leave": False, "disable": hidden, "dynamic_ncols": True}
    return tqdm(desc=title, total=images, initial=done, **shown)
