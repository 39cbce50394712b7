"""Shards of the WebDataset kind: tars of photographs and what belongs to them, read in one pass, without unpacking."""

from __future__ import annotations

import json
import os
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice

from torch.utils.data import IterableDataset, get_worker_info

from inference.photos import PhotoBatch, Photos, refuse_pipe
from inference.sources import picture_endings
from photographs import workers

ORIGIN = ("url", "key")  # what is kept of the JSON text beside a photograph, as img2dataset writes it


def shard_batches(
    photos: Photos, shards: Sequence[str], batch_size: int, num_workers: int
) -> Iterator[PhotoBatch]:
    """Batches of photographs of one shard each, in its order; those of `num_workers` shards alternate. Raises InputError.

    A shard's last batch has no photograph, but an error where something is wrong with the shard.
    """
    dataset, num_workers = Shards(photos, shards, batch_size), min(num_workers, len(shards))
    return workers.items(workers.loader(dataset, num_workers, batch_size=None, collate_fn=workers.as_it_is))


class Shards(IterableDataset):
    """Every process reads shards of its own, each from its beginning to its end."""

    def __init__(self, photos: Photos, shards: Sequence[str], batch_size: int):
        self.photos, self.shards, self.batch_size = photos, shards, batch_size

    def __iter__(self) -> Iterator[PhotoBatch]:
        info = get_worker_info()
        for shard in self.shards if info is None else self.shards[info.id :: info.num_workers]:
            faults: list[str] = []
            samples = self._read(shard, faults)
            while some := list(islice(samples, self.batch_size)):
                origins = [sample.pop() for sample in some]
                yield self.photos.collate(some)._replace(origins=origins, shard=shard)
            end = [[shard, "; ".join(faults), False, None]] if faults else []
            yield self.photos.collate(end)._replace(shard=shard, is_last=True)

    def _read(self, shard: str, faults: list[str]) -> Iterator[list]:
        """What `photos` makes of each picture, and its origin. What is wrong with the shard is added to `faults`."""
        from webdataset.tariterators import group_by_keys  # takes a second to import

        others: Counter[str] = Counter()
        empty = True
        for sample in group_by_keys(_members(shard, faults, others), lcase=False):
            origin = _origin(sample.get("json", b""))
            for ending, content in sample.items():
                path = f"{shard}/{sample['__key__']}.{ending}"
                if _ending(path) in picture_endings():
                    empty = False
                    yield [path, *self.photos.read(content), origin]
        if empty and not faults:
            counts = ", ".join(f"{count} {ending}" for ending, count in others.most_common(5))
            faults.append(f"no member is a picture ({counts or 'it has none'})")


def _members(shard: str, faults: list[str], others: Counter[str]) -> Iterator[dict]:
    """The pictures and JSON texts of a tar, plain or compressed, as `group_by_keys` takes them.

    others: the endings of what is left out, counted. Behind a damaged header it goes on with the next whole one, and says
    so; webdataset's own reader takes it for the end.
    """
    seen, repeated, blocks = set(), 0, Counter()
    try:
        refuse_pipe(shard)
        with tarfile.open(shard, "r|*", tarinfo=_noting(blocks), ignore_zeros=True) as tar:
            for member in tar:
                tar.members = []  # it would keep them all
                name, ending = member.name.removeprefix("./"), _ending(member.name)
                if not member.isreg():
                    continue
                if ending not in picture_endings():
                    others[ending or "without an ending"] += 1
                if name in seen:
                    repeated += 1
                elif ending == ".json" or ending in picture_endings():
                    seen.add(name)
                    yield {"fname": name, "data": tar.extractfile(member).read(), "__url__": shard}
    except Exception as error:  # a damaged tar raises anything at all
        faults.append(_explain(error))
    if blocks["broken"] and not blocks["whole"]:
        faults[:] = ["it is not a tar"]
    elif blocks["broken"]:
        faults.append("it is damaged: a member or more in it cannot be read")
    elif not (faults or blocks["at the end"]):
        faults.append("it is cut short")
    if repeated:
        faults.append(f"members with the name of another: {repeated}; only the first of each name was scored")


def _noting(blocks: Counter[str]) -> type[tarfile.TarInfo]:
    """A kind of header that counts the whole and the broken ones, and notes whether zeros came last, which end a tar."""

    class Header(tarfile.TarInfo):
        @classmethod
        def frombuf(cls, block: bytes, *how) -> tarfile.TarInfo:
            if block:
                blocks["at the end"] = 0
            try:
                header = super().frombuf(block, *how)
            except tarfile.EOFHeaderError:
                blocks["at the end"] = 1
                raise
            except tarfile.InvalidHeaderError:
                blocks["broken"] += 1
                raise
            blocks["whole"] += 1
            return header

    return Header


def _explain(error: Exception) -> str:
    """Why a shard could not be read to its end, in a few words."""
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    if "unexpected end" in str(error):
        return "it is cut short"
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return f"it cannot be read ({' '.join(reason.split())[:160]})"


def _ending(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _origin(text: bytes) -> dict[str, str]:
    """The `url` and `key` that the JSON text beside a photograph gives; what is no text is written as JSON."""
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    found = (
        {name: said[name] for name in ORIGIN if said.get(name) is not None} if isinstance(said, dict) else {}
    )
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in found.items()}
    return {name: text.encode("utf-8", "replace").decode() for name, text in texts.items()}
