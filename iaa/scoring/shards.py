"""Shards as webdataset and img2dataset write them: tars of photographs with JSON texts, read in one pass, not unpacked."""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Iterator, Sequence
from itertools import groupby, islice

import numpy as np
from torch.utils.data import IterableDataset, get_worker_info

from iaa.photographs import workers
from iaa.photographs.decode import RAW_ENDINGS, ending_of, error_text, picture_endings, refuse_no_file
from iaa.photographs.picture_files import is_hidden
from iaa.scoring.photos import PhotoBatch, Photos, ScoredPhoto

ORIGIN = ("url", "key")  # read from the JSON text beside a photograph, as img2dataset writes it
MAX_HEADER = 2**20  # bytes of the headers before a member


def shard_batches(photos: Photos, shards: Sequence[str]) -> Iterator[PhotoBatch]:
    """Batches in the order of each shard, every batch of one shard; batches of `photos.num_workers` shards alternate.

    A shard's last batch has no photograph, and the fault of the shard if not all of it was read. Raises InputError if a worker dies.
    """
    num_workers = min(photos.num_workers, len(shards))
    options = {"batch_size": None, "collate_fn": workers.identity}
    loader = workers.make_worker_loader(Shards(photos, shards), num_workers, photos.batch_bytes, **options)
    return workers.checked_items(loader)


class Shards(IterableDataset):
    """Batches of photographs. Each worker process reads shards of its own."""

    def __init__(self, photos: Photos, shards: Sequence[str]):
        self.photos, self.shards = photos, shards

    def __iter__(self) -> Iterator[PhotoBatch]:
        info = get_worker_info()
        for shard in self.shards if info is None else self.shards[info.id :: info.num_workers]:
            faults: list[str] = []
            samples = self._read(shard, faults)
            while batch := list(islice(samples, self.photos.batch_size)):
                yield self.photos.collate(batch)._replace(shard=shard)
            yield self.photos.collate([])._replace(shard=shard, fault="; ".join(faults))

    def _read(self, shard: str, faults: list[str]) -> Iterator[tuple[ScoredPhoto, np.ndarray | None]]:
        """Each picture, as `Photos.read` has it. Adds the shard's faults to `faults`."""
        max_bytes = self.photos.max_bytes
        members = read_members(shard, faults, max_bytes)
        for key, group in groupby(members, lambda member: key_of(member[0])):
            contents = dict(group)
            origin = read_origin(contents.get(f"{key}.json") or b"")
            for name, content in contents.items():
                if ending_of(name) == ".json":
                    continue
                path = f"{shard}/{name}"
                photo, pixels = ScoredPhoto(path, f"it has more than {max_bytes:,} bytes (--max_bytes)"), None
                if content is not None:
                    photo, pixels = self.photos.read(path, content)
                photo.origin = origin
                yield photo, pixels


def key_of(name: str) -> str:
    """The members of one photograph have one name up to its first dot."""
    folder, file = os.path.split(name)
    return os.path.join(folder, file.partition(".")[0])


class Member(tarfile.TarInfo):
    """A member of a tar. tarfile reads the headers before it, such as a long name, whole, whatever size they claim."""

    HEADERS = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)

    def _proc_member(self, tar: tarfile.TarFile) -> tarfile.TarInfo:
        if self.type in self.HEADERS and self.size > MAX_HEADER:
            raise tarfile.ReadError(f"a header of {self.size:,} bytes")
        return super()._proc_member(tar)


def read_members(shard: str, faults: list[str], max_bytes: int) -> Iterator[tuple[str, bytes | None]]:
    """Names and contents of the pictures and JSON texts in a tar, plain or compressed, up to its end or its first fault.

    The content of one that is larger than max_bytes is None: a small tar may claim any size, by holes or compression.
    RAW files, which are read by their paths, are left out. Pictures that are links (their content lies elsewhere), or whose
    names lead out of the shard, are counted as a fault.
    """
    endings, left_out = {".json"} | picture_endings() - RAW_ENDINGS, 0
    try:
        refuse_no_file(shard)
        with open(shard, "rb") as file:
            with tarfile.open(fileobj=file, mode="r|*", tarinfo=Member) as tar:
                for member in tar:
                    name, ending = os.path.normpath(member.name), ending_of(member.name)
                    parts = name.split("/")
                    hidden = any(is_hidden(part) for part in parts if part != "..")
                    if hidden or member.isdir() or ending not in endings:
                        pass
                    elif member.isfile() and parts[0] != "..":
                        yield name, tar.extractfile(member).read() if member.size <= max_bytes else None
                    else:
                        left_out += ending != ".json"
                    tar.members.clear()  # tarfile keeps them all
            file.seek(257)
            if file.read(5) == b"ustar":  # not compressed
                file.seek(-tarfile.BLOCKSIZE, os.SEEK_END)
                if any(file.read()):  # tarfile does not notice a cut in a header, or before it
                    raise tarfile.ReadError("unexpected end of data")
    except Exception as error:  # a damaged tar raises anything at all
        faults.append(f"cannot be read to its end ({error_text(error)})")
    if left_out:
        faults.append(f"{left_out} members left out: links, or names that lead out of it; unpack it")


def read_origin(text: bytes) -> dict[str, str]:
    """The `url` and `key` that the JSON text beside a photograph gives."""
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    fields = fields if isinstance(fields, dict) else {}
    texts = {name: str(fields[name]) for name in ORIGIN if fields.get(name) is not None}
    return {name: value.encode("utf-8", "replace").decode() for name, value in texts.items()}
