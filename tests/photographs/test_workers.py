"""Reading processes: as many as /dev/shm has room for; an error in the thread that sends a batch ends in one line."""

import os
from types import SimpleNamespace

import pytest

from iaa.errors import InputError
from iaa.photographs import workers
from iaa.scoring.photos import Photos, Resize

MIB = 2**20


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize(
    ("free", "processes", "left"),
    [(64, 1, 4), (64, 8, 3), (9, 1, 3), (6, 1, 2), (4, 1, 1), (3, 1, 0), (0, 1, 0)],
)
def test_no_more_processes_read_than_shared_memory_has_room_for(monkeypatch, free, processes, left, caplog):
    state = SimpleNamespace(f_bavail=free * MIB // 4096, f_frsize=4096)
    monkeypatch.setattr(os, "statvfs", lambda path: state)
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    monkeypatch.setattr(workers, "START", "fork")  # no process is started here
    loader = workers.make_worker_loader([], 4, MIB, batch_sampler=[], persistent_workers=True)
    assert loader.num_workers == left
    told = f"MiB for batches of 1.0 MiB: {left} of 4 workers read; more with a smaller batch, or Docker's --shm-size"
    assert caplog.text.count(told) == (left < 4)


@pytest.mark.parametrize("batch_bytes", [MIB, 0])
def test_the_main_process_reads_where_shared_memory_cannot_be_written(monkeypatch, batch_bytes):
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert workers.make_worker_loader([], 4, batch_bytes, batch_sampler=[]).num_workers == 0
    monkeypatch.setattr(workers, "PARALLEL_FROM", 1)
    assert list(workers.map_parallel(abs, [-1], 2, "", None)) == [1]


def test_a_batch_is_counted_by_its_pixels():
    assert Photos(Resize(224, "bicubic"), batch_size=128).batch_bytes == 128 * 3 * 224 * 224


def test_an_error_in_the_thread_that_sends_ends_in_one_line(monkeypatch):
    """Such as a full /dev/shm; a memoryview cannot be sent either."""
    monkeypatch.setattr(workers, "START", "fork")
    options = {"batch_size": None, "collate_fn": workers.identity}
    loader = workers.make_worker_loader(workers.FunctionDataset(memoryview), 1, sampler=[b"x"], **options)
    with pytest.raises(
        InputError, match=r"exited unexpectedly\); memory, or /dev/shm \(Docker's --shm-size\)"
    ):
        list(workers.checked_items(loader))
