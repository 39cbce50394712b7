"""What was meant by an unknown word."""

from __future__ import annotations

import difflib
from collections.abc import Collection

DASHES = "-\u2013\u2014"  # word processors write longer ones
# Each group: an option of main_nni.py, and the words that other programs and our other commands use for it.
_SYNONYMS = (
    ("init_lr", "lr", "learning_rate", "base_lr"),
    ("batch_size", "bs"),
    ("weight_decay", "wd"),
    ("path_to_model_weight", "weights", "checkpoint", "ckpt", "model_path"),
    ("path_to_images", "images", "data", "data_dir", "data_path", "image_dir"),
    ("path_to_save_csv", "csv", "labels"),
    ("experiment_dir_name", "out", "output", "output_dir", "save_dir"),
    ("gpu_id", "device", "gpu", "gpus", "cuda"),
    ("model", "arch", "backbone", "network"),
    ("amp", "fp16", "bf16", "half", "precision"),
)


def suggest(word: str, names: Collection[str], mark: str = "") -> str:
    """The end of a message on an unknown word: the nearest of `names`, if any is near. mark: stands before that name."""
    word = word.lstrip(DASHES).partition("=")[0].replace("-", "_").lower()
    meant = [name for group in _SYNONYMS if word in group for name in group if name in names]
    meant = meant or [name for name in names if len(word) > 2 and name.startswith(word)]
    meant = meant or difflib.get_close_matches(word, names, 1)
    return f"; did you mean {mark}{meant[0]}?" if meant else ""
