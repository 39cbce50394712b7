"""Scoring of shards: what one core reads, beside a folder of files; and whole runs, killed on the way, with their memory.

    python -m benchmarks.shards rate --images FOLDER
    python -m benchmarks.shards run --shards 100 --members 10000 --processes 2 --kills 2 --model timm/test_vit

`run` makes the shards (pictures of 8 x 8 pixels) and the weights in its folder, and counts the rows at the end.
"""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import sklearn.datasets
import torch
from PIL import Image
from pyarrow import compute, dataset

import models
from benchmarks.loading import jpegs
from commands.errors import guarded
from commands.files import read_process
from commands.parser import with_commands
from inference.photos import PhotoBatch, Photos, batches
from inference.shards import shard_batches
from inference.sources import Found
from option import MODELS, InputError, Option
from photographs.decode import Resize

COMMANDS = {
    "rate": ("images per second of one core, out of files and out of shards", {"": (
        Option("images", str, None, "folder of JPEGs (default: scikit-learn's two)", metavar="FOLDER"),
        Option("count", int, 64, "pictures in a pass", low=1),
        Option("repeats", int, 7, "passes of each way, in turn", low=1),
        Option("folder", Path, Path("shards"), "where the shards are made", metavar="FOLDER"),
    )}),
    "run": ("score made shards, with kills on the way, and count the rows", {"": (
        Option("shards", int, 10, "how many", low=1),
        Option("members", int, 100, "pictures in each", low=1),
        Option("processes", int, 1, "that torchrun starts", low=1),
        Option("num_workers", int, 1, "processes that read, of each"),
        Option("model", str, "eat_nano", "the network, untrained; timm/test_vit is quick", choices=(*MODELS, "timm/test_vit")),
        Option("kills", int, 0, "kill -9 of all processes, spread over the run"),
        Option("folder", Path, Path("shards"), "where all of it is made; scores that are there are gone on with", metavar="FOLDER"),
    )}),
}  # fmt: skip


def make_shard(path: Path, number: int, pictures: Iterable[bytes]) -> None:
    """As img2dataset writes it, by the same package."""
    from webdataset import TarWriter

    path.parent.mkdir(parents=True, exist_ok=True)
    with TarWriter(str(path)) as tar:
        for place, picture in enumerate(pictures):
            key = f"{number:05d}{place:04d}"
            said = {"url": f"http://example.org/{key}.jpg", "key": key, "width": 8, "height": 8}
            tar.write({"__key__": key, "jpg": picture, "json": said, "txt": "a caption"})


def rate(images: str | None, count: int, repeats: int, folder: Path) -> None:
    """Print images per second of processor time, medians of passes in turn, and the ratio of shards to files."""
    source = Path(images or Path(sklearn.datasets.__file__).parent / "images")
    if not source.is_dir() or not (found := jpegs(source)):
        raise InputError(f"--images {source}: no folder with JPEGs")
    torch.set_num_threads(1)
    contents = [found[number % len(found)].read_bytes() for number in range(count)]
    names = []
    for number, content in enumerate(contents):
        names.append(str(folder / "files" / f"{number:06d}.jpg"))
        Path(names[-1]).parent.mkdir(parents=True, exist_ok=True)
        Path(names[-1]).write_bytes(content)
    for ending in ("tar", "tar.gz"):
        make_shard(folder / f"rate.{ending}", 0, contents)
    print("| decode | files | tar | of files | tar.gz | of files |\n|---|---|---|---|---|---|")
    for decode in ("pil", "fast"):
        photos = Photos(Resize(224, "bicubic"), decode)
        ways = {"files": lambda photos=photos: batches(photos, map(Found, names), 16, 0)} | {
            e: lambda photos=photos, e=e: shard_batches(photos, [str(folder / f"rate.{e}")], 16, 0)
            for e in ("tar", "tar.gz")
        }
        passes = [{way: per_second(read) for way, read in ways.items()} for _ in range(repeats + 1)][1:]
        cells = [f"{statistics.median(one['files'] for one in passes):.0f}"]
        for way in ("tar", "tar.gz"):
            ratios = sorted(one[way] / one["files"] for one in passes)
            middle = statistics.median(one[way] for one in passes)
            cells += [
                f"{middle:.0f}",
                f"{statistics.median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f})",
            ]
        print(f"| {decode} | {' | '.join(cells)} |", flush=True)


def per_second(read: Callable[[], Iterable[PhotoBatch]]) -> float:
    """Images per second of this process's time."""
    start = time.process_time()
    images = sum(len(batch.images) for batch in read())
    return images / (time.process_time() - start)


def run(
    shards: int, members: int, processes: int, num_workers: int, model: str, kills: int, folder: Path
) -> None:
    """Score, kill, go on; print the memory on the way, and what the table holds at the end."""
    make_all(folder, shards, members, model)
    out, start = folder / "scores.parquet", time.monotonic()
    for kill in range(kills + 1):
        last = kill == kills
        until = shards if last else max(1, shards * (kill + 1) // (kills + 1))
        process = subprocess.Popen(
            command(folder, shards, processes, num_workers, out), start_new_session=True
        )
        family = watch(process, out, until, None if last else until)
        if not last:
            for number in family:
                os.kill(number, signal.SIGKILL)
            print(f"killed with {parts(out)} parts", flush=True)
        process.wait()
    if process.returncode:
        raise InputError(f"predict.py ended with status {process.returncode}; its last lines say why")
    table = dataset.dataset(out).to_table(["image", "error"])
    names = compute.count_distinct(table["image"]).as_py()
    errors = compute.sum(compute.not_equal(table["error"], "")).as_py()
    print(f"{table.num_rows} rows, {names} photographs, {errors} errors, {time.monotonic() - start:.0f} s")


def make_all(folder: Path, shards: int, members: int, name: str) -> None:
    """Shards of tiny JPEGs, of which there are 500, and the weights of an untrained network; those that are there stay."""
    rng, pictures = np.random.default_rng(0), []
    for _ in range(500):
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(file := BytesIO(), "JPEG")
        pictures.append(file.getvalue())
    for number in range(shards):
        if not (path := folder / f"photos-{number:06d}.tar").exists():
            making = path.with_suffix(".making")
            make_shard(making, number, (pictures[(number + n) % 500] for n in range(members)))
            making.rename(path)
    if not (folder / "w.pth").exists():
        model = models.create_model(
            name, 10, **({} if name.startswith("timm/") else {"interest_points": "image"})
        )
        model.purpose = {"model": name, "dataset": "ava", "score_range": [1, 10]}
        torch.save(model.state_dict(), folder / "w.pth")


def command(folder: Path, shards: int, processes: int, num_workers: int, out: Path) -> list[str]:
    """predict.py, by torchrun."""
    words = ["torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", "predict.py"]
    words += [str(folder / f"photos-{{000000..{shards - 1:06d}}}.tar"), "--weights", str(folder / "w.pth")]
    words += ["--out", f"{out}/", "--append", "--gpu_id", "cpu", "--num_workers", str(num_workers)]
    return [sys.executable, "-m", *words]


def watch(process: subprocess.Popen, out: Path, shown_until: int, until: int | None) -> list[int]:
    """Print memory ten times on the way to `shown_until` parts; returns at `until` parts, or at its end, its processes."""
    step, after = max(1, shown_until // 10), 0
    while process.poll() is None:
        family = descendants(process.pid)
        if (there := parts(out)) >= after and len(family) > 1:
            after = there + step
            sizes = [mebibytes(number) for number in family[1:]]
            print(
                f"{there} parts; MiB of each process: {' '.join(f'{size:.1f}' for size in sizes)}", flush=True
            )
        if until is not None and there >= until:
            return family
        time.sleep(0.2)
    return []


def parts(out: Path) -> int:
    return sum(name.endswith(".parquet") for name in os.listdir(out)) if out.is_dir() else 0


def descendants(number: int) -> list[int]:
    """A process and all that it has started."""
    children = read_process(number, f"task/{number}/children").split()
    return [number] + [one for child in children for one in descendants(int(child))]


def mebibytes(number: int) -> float:
    """What a process holds in memory, shared pages in it."""
    lines = [line for line in read_process(number, "status").splitlines() if line.startswith("VmRSS")]
    return int(lines[0].split()[1]) / 1024 if lines else 0.0


def main(argv: Sequence[str] | None = None) -> int:
    """Do what the command line asks; returns the exit status."""
    options = vars(with_commands("benchmarks.shards", __doc__.split("\n")[0], COMMANDS).parse_args(argv))
    work = {"rate": rate, "run": run}[options.pop("command")]
    return guarded("benchmarks.shards", lambda: work(**options))


if __name__ == "__main__":
    sys.exit(main())
