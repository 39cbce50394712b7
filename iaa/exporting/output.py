"""The path of an export, and its safe replacement."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from iaa.errors import InputError

ENDINGS = {"onnx": ".onnx", "safetensors": ".safetensors", "hub": "_hub"}  # by the value of --to


def output_path(form: str, out: Path | None, weights: Path, weights_file: Path, suffix: str = "") -> Path:
    """The absolute path of an export, by default beside the weights and by their name.

    form: a key of ENDINGS. weights: the user's path, a file or a folder; weights_file: the file that was read.
    suffix: comes before the default name's ending.
    Raises InputError for another ending, by which readers know a file, and for a path that would replace the weights.
    """
    weights = Path(os.path.abspath(weights))  # a link keeps its own name and folder
    stem = weights.name if weights.is_dir() else weights.stem
    out = Path(os.path.abspath(out or weights.with_name(stem + suffix + ENDINGS[form])))
    if form != "hub" and out.suffix != ENDINGS[form]:
        raise InputError(f"{out}: must end in {ENDINGS[form]}; give another --out")
    weights_file = weights_file.resolve()
    if out.resolve() in (weights.resolve(), weights_file, *weights_file.parents):
        raise InputError(f"{out}: would replace the weights that are exported; give another --out")
    if not out.parent.is_dir():
        raise InputError(f"{out.parent}: no such folder; make it, or give another --out")
    return out


@contextmanager
def replacing(out: Path, overwrite: bool, contents: Sequence[str] = ()) -> Iterator[Path]:
    """A temporary path for the new `out`. It is moved to `out` if all goes well, and removed if not.

    contents: the names of the files in a folder; none: `out` is a file.
    Raises InputError if `out` exists without `overwrite`, or holds anything else than such an export.
    """
    refuse_to_replace(out, overwrite, contents)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as beside:
        temporary, before = Path(beside, out.name), Path(beside, "before")
        yield temporary
        refuse_to_replace(out, overwrite, contents)  # it may have appeared meanwhile
        try:
            if out.is_dir():  # a folder is not replaced in one step
                os.replace(out, before)
            os.replace(temporary, out)
        finally:
            if before.exists() and not out.exists():
                os.replace(before, out)


def refuse_to_replace(out: Path, overwrite: bool, contents: Sequence[str]) -> None:
    """Raises InputError; see `replacing`."""
    if not os.path.lexists(out):
        return
    if not overwrite:
        raise InputError(f"{out}: is there already; give --overwrite or another --out")
    if out.is_dir() != bool(contents) or (contents and {path.name for path in out.iterdir()} - set(contents)):
        raise InputError(f"{out}: holds something that no such export has written; give another --out")
