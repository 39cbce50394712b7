"""The photographs that a command line names, by files, folders, globs, lists and shards: each once, in a fixed order."""

from __future__ import annotations

import codecs
import glob
import importlib.util
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from functools import cache
from typing import NamedTuple

from PIL import Image

from iaa.errors import InputError
from iaa.photographs.decode import FORMATS


class Source(NamedTuple):
    """The path of a file or of a shard; or of a folder or glob that gives no photographs, with the error."""

    path: str
    error: str = ""

    @property
    def is_shard(self) -> bool:
        return not self.error and is_shard(self.path)


def is_shard(path: str) -> bool:
    """Whether a file is a tar of photographs, by its ending."""
    return path.lower().endswith((".tar", ".tar.gz", ".tgz"))


def shards_of(path: str) -> list[str]:
    """The paths of the shards in which a photograph may lie: `a.tar` for `a.tar/b.jpg`."""
    return [path[: match.end()] for match in re.finditer(r"\.(tar|tar\.gz|tgz)(?=/)", path, re.IGNORECASE)]


@cache
def picture_endings() -> set[str]:
    """The endings of files that are read as photographs: `.jpg` and so on."""
    return {ending for ending, name in Image.registered_extensions().items() if name in FORMATS}


class Sources:
    """The photographs of a command line, each once: iterate as often as you like.

    paths: files with any ending; folders, searched with all folders below them for files with a picture's ending, but
        hidden ones; globs with `*`, `?`, `[...]` and `**`; shards, also as patterns with braces. Folders are not
        searched for shards.
    lists: text files with a path in each line; `-` is standard input. What cannot be read twice is read into memory.
    skipped: counts, by ending, of the files in folders that the latest iteration skipped.
    """

    def __init__(self, paths: Sequence[str], lists: Sequence[str] = ()):
        self.paths, self.skipped = paths, Counter()
        self.lists = [name if os.path.isfile(name) else list(_lines(name)) for name in lists]

    def __iter__(self) -> Iterator[Source]:
        return self.without(set())

    def without(self, hashes: set[int], key: Callable[[str], str] = str) -> Iterator[Source]:
        """The sources whose hash is not in `hashes`, to which it is added. A million 64-bit hashes take some 70 MB.

        key: turns an absolute path into the text that is hashed.
        """
        self.skipped.clear()
        for source in self._all():
            number = hash(key(os.path.abspath(source.path)))
            if number not in hashes:
                hashes.add(number)
                yield source

    def _all(self) -> Iterator[Source]:
        for pattern in self.paths:
            for path in _without_braces(pattern):
                is_glob = glob.has_magic(path) and not os.path.lexists(path)
                matches = sorted(glob.iglob(path, recursive=True)) if is_glob else [path]
                for match in matches:
                    yield from self._below(match)
                if not matches:
                    yield Source(path, "nothing matches")
        for lines in self.lists:
            for path in _lines(lines) if isinstance(lines, str) else lines:
                yield from self._below(path)

    def _below(self, path: str) -> Iterator[Source]:
        """The file itself; or a folder's photographs, then those of the folders in it, then the folders that fail."""
        if not os.path.isdir(path):
            if is_shard(path):
                _need_webdataset()
            yield Source(path)
            return
        errors: list[OSError] = []
        for folder, folders, names in os.walk(path, onerror=errors.append):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in sorted(name for name in names if not name.startswith(".")):
                ending = os.path.splitext(name)[1].lower()
                if ending in picture_endings():
                    yield Source(os.path.join(folder, name))
                else:
                    self.skipped[ending or "no ending"] += 1
        for error in errors:
            yield Source(error.filename, f"the folder cannot be read ({error.strerror.lower()})")

    def describe_skipped(self) -> str:
        """The end of a sentence; empty if nothing was skipped."""
        if not self.skipped:
            return ""
        counts = ", ".join(f"{count} {ending}" for ending, count in self.skipped.most_common(5))
        hint = " (shards are taken by name: 'FOLDER/*.tar')" * any(map(is_shard, self.skipped))
        return f"; files in folders that do not end as pictures do were left out: {counts}{hint}"


def _without_braces(path: str) -> Iterable[str]:
    """The paths that a pattern such as `photos-{000..999}.tar` stands for; any other path alone."""
    if "{" not in path or not is_shard(path) or os.path.lexists(path):
        return [path]
    _need_webdataset()
    import braceexpand  # comes with webdataset

    try:
        return braceexpand.braceexpand(path)
    except braceexpand.UnbalancedBracesError:
        raise InputError(f"{path}: a brace has no other half; write it as photos-{{000..999}}.tar") from None


def _need_webdataset() -> None:
    """Raises InputError if webdataset is not installed."""
    if importlib.util.find_spec("webdataset") is None:
        raise InputError("shards (.tar) need webdataset: pip install -r requirements/scale.txt")


def _lines(name: str) -> Iterator[str]:
    """The paths in a list. File names are bytes; those that are not UTF-8 keep their bytes."""
    with nullcontext(sys.stdin.buffer) if name == "-" else open(name, "rb") as file:
        for line in file:
            if path := os.fsdecode(line.removeprefix(codecs.BOM_UTF8).rstrip(b"\r\n")):
                yield path
