"""The photographs that a command line names, by files, folders, globs, lists and shards: each once, in a fixed order."""

from __future__ import annotations

import fnmatch
import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence

from iaa.photographs.decode import ending_of, picture_endings
from iaa.photographs.picture_files import describe_endings, is_hidden, join_pairs, read_list, walk_folders

SIDECAR = ".xmp"


def is_shard(path: str) -> bool:
    """Whether a file is a tar of photographs, by its ending."""
    return path.lower().endswith((".tar", ".tar.gz", ".tgz"))


def shards_of(path: str) -> list[str]:
    """The paths of the shards in which a photograph may lie: `a.tar` for `a.tar/b.jpg`."""
    return [path[: match.end()] for match in re.finditer(r"\.(tar|tar\.gz|tgz)(?=/)", path, re.IGNORECASE)]


def path_number(path: str) -> int:
    """A 64-bit hash of the absolute path."""
    name = os.path.abspath(path).encode("utf-8", "surrogateescape")  # file names are bytes
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest())


class Sources:
    """The paths of the photographs and shards of a command line, each once: iterate as often as you like.

    paths: files with any ending but a sidecar's; folders, searched with all folders below them for files with a picture's
        ending, as `walk_folders` does, each real folder once; globs with `*`, `?`, `[...]` and `**`; shards, also as
        `photos-{000..999}.tar`. Folders are not searched for shards. A folder that cannot be read, and a glob without
        matches, is a path like that of a file.
    lists: text files of paths, see `read_list`; `-` is standard input. What cannot be read twice is read into memory.
    both: in folders, a RAW file is found beside its JPEG, too; see `join_pairs`.
    skipped: counts, by ending, of the files in folders that the latest iteration skipped. joined: of RAW files with a JPEG.
    """

    def __init__(self, paths: Sequence[str], lists: Sequence[str] = (), both: bool = False):
        self.paths, self.both, self.skipped, self.joined = paths, both, Counter(), 0
        self.lists = [name if os.path.isfile(name) else list(read_list(name)) for name in lists]

    def __iter__(self) -> Iterator[str]:
        return self.without(set())

    def without(self, done: set[int]) -> Iterator[str]:
        """The paths whose `path_number` is not in `done`, to which it is added. A million of them take some 70 MB."""
        self.skipped.clear()
        self.joined = 0
        folders: set[str] = set()
        for path in (found for named in self._named() for found in self._below(named, folders)):
            number = path_number(path)
            if number not in done:
                done.add(number)
                yield path

    def _named(self) -> Iterator[str]:
        for pattern in self.paths:
            yield from _expand(pattern)
        for lines in self.lists:
            yield from read_list(lines) if isinstance(lines, str) else lines

    def common_folder(self) -> str:
        """The deepest folder that holds all files and folders that are named."""
        named = map(os.path.abspath, self._named())
        return os.path.commonpath({path if os.path.isdir(path) else os.path.dirname(path) for path in named})

    def _below(self, path: str, seen: set[str]) -> Iterator[str]:
        """The file itself; or a folder's photographs, then those of the folders in it, then the folders that fail."""
        if not os.path.isdir(path):
            if ending_of(path) != SIDECAR:
                yield path
            return
        errors: list[OSError] = []
        for folder, names in walk_folders(path, errors.append, seen):
            kept = names if self.both else join_pairs(names)
            self.joined += len(names) - len(kept)
            for name in kept:
                ending = ending_of(name)
                if ending in picture_endings():
                    yield os.path.join(folder, name)
                elif ending != SIDECAR:
                    self.skipped[ending] += 1
        for error in errors:
            yield error.filename

    def describe_skipped(self) -> str:
        """The end of a sentence; empty if nothing was skipped."""
        text = f"; {self.joined} RAW files have their JPEG's row (--pairs both)" if self.joined else ""
        if not self.skipped:
            return text
        hint = " (shards are taken by name: 'FOLDER/*.tar')" * any(map(is_shard, self.skipped))
        counts = describe_endings(self.skipped) + hint
        return f"{text}; files in folders that do not end as pictures do were left out: {counts}"


def _expand(pattern: str) -> Iterator[str]:
    """The paths that a glob or a pattern such as `photos-{000..999}.tar` stands for; any other path alone."""
    numbers = re.search(r"\{(\d+)\.\.(\d+)\}", pattern)
    if os.path.lexists(pattern):
        yield pattern
    elif numbers and is_shard(pattern):
        first, last = numbers.groups()
        for number in range(int(first), int(last) + 1):
            yield from _expand(pattern.replace(numbers[0], f"{number:0{len(first)}}", 1))
    else:
        folder = os.sep * pattern.startswith(os.sep)
        yield from sorted(_matches(folder, pattern.lstrip(os.sep).split(os.sep))) or [pattern]


def _matches(folder: str, parts: Sequence[str]) -> Iterator[str]:
    """The paths in a folder that a glob's parts stand for; what has a part's very name is meant before a pattern is."""
    if not parts:
        yield folder
        return
    name, *rest = parts
    path, errors = os.path.join(folder, name), []
    if os.path.lexists(path):
        yield from _matches(path, rest)
    elif name == "**":
        while rest[:1] == ["**"]:
            rest = rest[1:]
        for below, files in walk_folders(folder or os.curdir, errors.append):
            below = below if folder else below[2:]  # without ./
            yield from _matches(below, rest) if rest else [os.path.join(below, file) for file in files]
        for error in errors:
            yield error.filename
    elif os.path.isdir(folder or os.curdir):
        try:
            names = os.listdir(folder or os.curdir)
        except OSError:
            yield folder  # a row says so
            return
        visible = [other for other in names if name.startswith(".") or not is_hidden(other)]
        for match in fnmatch.filter(visible, name):
            yield from _matches(os.path.join(folder, match), rest)
