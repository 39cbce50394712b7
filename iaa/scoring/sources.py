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
from itertools import chain
from typing import NamedTuple

from iaa.errors import InputError

SHARDS = (".tar", ".tar.gz", ".tgz")


class Source(NamedTuple):
    """The path of a file or of a shard; or of a folder or glob that gives no photographs, with the error."""

    path: str
    error: str = ""

    @property
    def is_shard(self) -> bool:
        return not self.error and is_shard(self.path)


def is_shard(path: str) -> bool:
    """Whether a file is a tar of photographs, by its ending."""
    return path.lower().endswith(SHARDS)


def shards_of(path: str) -> list[str]:
    """The paths of the shards in which a photograph may lie: `a.tar` for `a.tar/b.jpg`."""
    return [path[: match.end()] for match in re.finditer(r"\.(tar|tar\.gz|tgz)(?=/)", path, re.IGNORECASE)]


@cache
def picture_endings() -> set[str]:
    """The endings of files that are read as photographs: `.jpg` and so on."""
    from PIL import Image  # slow to import, with the decoders

    from iaa.photographs.decode import FORMATS

    return {ending for ending, name in Image.registered_extensions().items() if name in FORMATS}


class Sources:
    """The photographs of a command line, each once: iterate as often as you like.

    paths: files with any ending; folders, searched with all folders below them for files with a picture's ending, but
        hidden ones; globs with `*`, `?`, `[...]` and `**`; shards, also as patterns with braces. Folders are not
        searched for shards.
    lists: text files with a path in each line; `-` is standard input, which can be read once only.
    left_out: counts, by ending, of the files in folders that the latest iteration left out.
    """

    def __init__(self, paths: Sequence[str], lists: Sequence[str] = ()):
        self.paths, self.lists, self.left_out = paths, lists, Counter()

    @property
    def countable(self) -> bool:
        """Whether one may iterate more than once: a pipe can be read once only."""
        return all(os.path.isfile(name) for name in self.lists)

    def __iter__(self) -> Iterator[Source]:
        return self.without(set())

    def without(self, hashes: set[int], key: Callable[[str], str] = str) -> Iterator[Source]:
        """The sources whose hash is not in `hashes`, to which it is added. A million 64-bit hashes take some 70 MB.

        key: turns an absolute path into the text that is hashed.
        """
        self.left_out.clear()
        for source in self._all():
            number = hash(key(os.path.abspath(source.path)))
            if number not in hashes:
                hashes.add(number)
                yield source

    def _all(self) -> Iterator[Source]:
        for path in chain.from_iterable(map(_without_braces, self.paths)):
            is_glob = glob.has_magic(path) and not os.path.lexists(path)
            matches = sorted(glob.iglob(path, recursive=True), key=_walk_order) if is_glob else [path]
            for match in matches:
                yield from self._of(match)
            if not matches:
                yield Source(path, "nothing matches")
        for name in self.lists:
            for line in _lines(name):
                yield from self._of(line)

    def _of(self, path: str) -> Iterator[Source]:
        """The file itself; or a folder's own photographs, then the photographs of the folders in it."""
        if not os.path.isdir(path):
            if is_shard(path):
                _need_webdataset()
            yield Source(path)
            return
        folders_left = [path]
        while folders_left:
            folder = folders_left.pop()
            try:
                names, folders = self._list_folder(folder)
            except OSError as error:
                yield Source(folder, f"the folder cannot be read ({(error.strerror or str(error)).lower()})")
                continue
            yield from (Source(os.path.join(folder, name)) for name in sorted(names))
            folders_left += [os.path.join(folder, name) for name in sorted(folders, reverse=True)]

    def _list_folder(self, folder: str) -> tuple[list[str], list[str]]:
        """The names of the photographs and of the folders in a folder; other files are counted."""
        names, folders = [], []
        with os.scandir(folder) as entries:
            for entry in entries:
                ending = os.path.splitext(entry.name)[1].lower()
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    folders += [entry.name] * (not entry.is_symlink())
                elif ending in picture_endings():
                    names.append(entry.name)
                elif entry.is_file():
                    self.left_out[ending or "no ending"] += 1
        return names, folders


def _without_braces(path: str) -> Iterable[str]:
    """The paths that a pattern such as `photos-{000..999}.tar` stands for; any other path alone."""
    if "{" not in path or not is_shard(path) or os.path.lexists(path):
        return [path]
    _need_webdataset()
    import braceexpand  # comes with webdataset

    try:
        return braceexpand.braceexpand(path)
    except braceexpand.UnbalancedBracesError:
        raise InputError(
            f"{path}: a brace in it has no other half; write it as photos-{{000..999}}.tar"
        ) from None


def _need_webdataset() -> None:
    """Raises InputError where webdataset is not installed."""
    if importlib.util.find_spec("webdataset") is None:
        raise InputError("shards (.tar) need webdataset: pip install -r requirements/scale.txt")


def _walk_order(path: str) -> tuple[list[str], str]:
    """A sort key: the files of a folder come before the files of the folders in it."""
    return os.path.dirname(path).split(os.sep), path


def _lines(name: str) -> Iterator[str]:
    """The paths in a list. File names are bytes; those that are not UTF-8 keep their bytes."""
    with nullcontext(sys.stdin.buffer) if name == "-" else open(name, "rb") as file:
        for line in file:
            if text := os.fsdecode(line.removeprefix(codecs.BOM_UTF8).rstrip(b"\r\n")):
                yield text
