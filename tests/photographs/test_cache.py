"""The cache of decoded pictures: the same pixels; changes and damage are noticed; an interrupted build goes on."""

import multiprocessing
import os
import resource
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.data import arguments, make_pictures
from helpers.processes import ended, fork

from dataset import Transform, batches, make_loader
from iaa.errors import InputError, Interrupted
from iaa.photographs import cache
from iaa.photographs.cache import Cache
from iaa.photographs.decode import Resize, read_fast, read_pil
from iaa.photographs.labels import FORMATS, read_labels
from iaa.runtime.signals import StopSignal

RESIZE = Resize(32, "bilinear")


@pytest.fixture
def names(scored):
    return read_labels(scored / "train.csv", FORMATS["tad66k"]).images


@pytest.fixture
def fill(scored, names):
    """Open the store of the twelve training pictures, or of some, filled."""
    return lambda names=names, **settings: filled(
        scored / "c", RESIZE, "fast", names, scored / "images", **settings
    )


def filled(folder, resize, decoder, names, images, **settings):
    store = Cache(folder, resize, decoder)
    store.fill(names, images, **settings)
    return store


def assert_stored(store, names, images):
    """All pictures are stored as they are."""
    assert not store.outdated(names, images).any()
    read = read_fast if store.decoder == "fast" else read_pil
    for name in names:
        np.testing.assert_array_equal(store.read(name), read(images / name, store.resize))


def descendants(pid):
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return children + [child for parent in children for child in descendants(parent)]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("train", [True, False])
def test_batches_are_the_same_from_the_cache(scored, names, train, workers):
    labels = read_labels(scored / "train.csv", FORMATS["tad66k"])
    transform = Transform(FORMATS["tad66k"], 32, train)
    store = filled(scored / "c", transform.resize, "fast", names, scored / "images", num_workers=workers)

    def epoch(**given):
        loader = make_loader(labels, scored / "images", transform, 5, workers, 1, decoder="fast", **given)
        return list(batches(loader, 3))

    expected = epoch()
    shutil.rmtree(scored / "images")
    for plain, kept in zip(expected, epoch(cache=store), strict=True):
        assert plain.names == kept.names
        assert torch.equal(plain.images, kept.images)
        assert torch.equal(plain.flips, kept.flips)


def test_odd_and_long_names_are_kept(tmp_path):
    long = "/".join(["directory" * 20] * 3)
    names = [
        'a,b "c".png',
        "d\u2028e.png",
        "f/\u00fc g.png",
        "k\nl.png",
        "m\udcff.png",
        *(f"{long}/{i}.png" for i in "ab"),
    ]
    make_pictures(tmp_path, names)
    store = filled(tmp_path / "c", RESIZE, "pil", np.array(names), tmp_path)
    assert_stored(store, names, tmp_path)
    with pytest.raises(InputError, match=r"the picture of nothing\.png is missing; remove the folder"):
        store.read("nothing.png")


def test_a_changed_picture_is_decoded_again(scored, names, fill, caplog):
    fill()
    make_pictures(scored / "images", names[3:5], seed=9)
    with caplog.at_level("INFO"):
        store = fill()
    assert "2 of 12 photographs are to be decoded" in caplog.text
    assert_stored(store, names, scored / "images")


def test_a_picture_that_does_not_decode_is_named_and_the_others_are_stored(scored, names, fill):
    (scored / "images" / names[2]).write_bytes(b"no picture")
    for _ in range(2):
        with pytest.raises(InputError, match=f"{names[2]}: does not decode .*remove its row$"):
            fill()
    outdated = Cache(scored / "c", RESIZE, "fast").outdated(names, scored / "images")
    assert outdated.tolist() == [name == names[2] for name in names]
    for name in names[3:5]:
        (scored / "images" / name).write_bytes(b"no picture either")
    with pytest.raises(
        InputError, match=f"{names[2]}: .*; 2 more do not decode; `prepare_data.py check` names them"
    ):
        fill()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("cut", "data.mdb: is cut short"),
        ("garbage", "data.mdb: cannot be read"),
        ("settings", 'data.mdb: was made with {"version": 3, .*"torch": "0.1", .*}, not {"version": 3, '),
    ],
)
def test_a_damaged_or_older_store_is_named(scored, names, fill, monkeypatch, run, damage, message):
    with monkeypatch.context() as patch:
        if damage == "settings":
            patch.setattr(cache.torch, "__version__", "0.1")
        store = fill()
    if damage == "cut":
        os.truncate(store.path, 40000)
    elif damage == "garbage":
        Path(store.path).write_bytes(b"\xff\xfe,,\nx\n" * 2000)
    expected = f"{message}.*; remove the folder {store.folder}, and it is built again"
    with pytest.raises(InputError, match=expected):
        fill()
    store.folder.rename(scored / "c" / "bilinear-256-fast")
    status, _, err = run(arguments(scored, "tad66k", cache=scored / "c"))
    assert (status, len(err.splitlines())) == (2, 1)
    assert "remove the folder" in err
    assert_stored(fill(), names, scored / "images")


@pytest.mark.parametrize("rows", [0, 1, 7])
def test_a_build_that_was_cut_goes_on(scored, names, fill, monkeypatch, rows):
    """Interrupted while the file was made, or with some pictures and the start of a transaction in it."""
    store = Cache(scored / "c", RESIZE, "fast")
    store.folder.mkdir(parents=True)
    if rows:
        fill(names[:rows])
    with open(store.path, "ab") as file:
        file.write(bytes(5000 if rows else 0))
    decoded = []
    original = cache.read_fast
    monkeypatch.setattr(cache, "read_fast", lambda *given: decoded.append(1) or original(*given))
    fill()
    assert len(decoded) == 12 - rows
    assert_stored(store, names, scored / "images")


def test_who_reads_from_a_store_is_not_disturbed_when_pictures_are_replaced(scored, names, fill):
    store = fill()
    before = [read_fast(scored / "images" / name, RESIZE) for name in names]
    go, context = scored / "go", multiprocessing.get_context("fork")

    def read():
        store.read(names[0])
        (scored / "reading").touch()
        while not go.exists():
            time.sleep(0.01)
        same = all(np.array_equal(store.read(name), kept) for name, kept in zip(names, before, strict=True))
        os._exit(0 if same else 1)

    reader = context.Process(target=read)
    reader.start()
    while not (scored / "reading").exists():
        time.sleep(0.01)
    make_pictures(scored / "images", names, seed=9)
    fill()
    go.touch()
    reader.join(300)
    assert reader.exitcode == 0


def test_a_signal_stops_a_build_which_then_goes_on(scored, names, fill, monkeypatch):
    original, calls = cache.read_fast, []

    def read(*given):
        calls.append(1)
        if len(calls) == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*given)

    monkeypatch.setattr(cache, "read_fast", read)
    monkeypatch.setattr(cache, "BATCH", 2)
    with StopSignal() as stop, pytest.raises(Interrupted):
        fill(stop=stop)
    store = Cache(scored / "c", RESIZE, "fast")
    assert np.flatnonzero(store.outdated(names, scored / "images")).tolist() == list(range(4, 12))
    fill()
    assert len(calls) == 13


@pytest.mark.slow
def test_a_killed_build_leaves_no_processes_behind_and_goes_on(tmp_path):
    """Its workers may be waiting to hand over a picture, larger than a pipe holds."""
    names = [f"{i}.jpg" for i in range(3000)]
    make_pictures(tmp_path, names[:1], (300, 300))
    for name in names[1:]:
        os.link(tmp_path / names[0], tmp_path / name)
    store = Cache(tmp_path / "k", Resize(256, "bilinear"), "fast")
    child = fork(lambda: store.fill(np.array(names), tmp_path, num_workers=2))
    while not os.path.exists(store.path) or os.path.getsize(store.path) < 300 * 256 * 256 * 3:
        assert os.waitpid(child, os.WNOHANG) == (0, 0)
        time.sleep(0.02)
    children = descendants(child)
    os.kill(child, signal.SIGKILL)
    assert ended(child) == -signal.SIGKILL
    assert len(children) >= 3  # the server that starts workers, two workers
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{child}").exists() for child in children):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    missing = store.outdated(names, tmp_path)
    assert 0 < missing.sum() < 3000
    assert_stored(store, np.array(names)[~missing], tmp_path)


def test_processes_that_share_a_cache_fill_it_once(scored, names, fill, monkeypatch):
    original = cache.read_fast

    def read(path, *given):
        with open(scored / "decoded", "a") as file:
            file.write(f"{path}\n")
        return original(path, *given)

    def work():
        os._exit(0 if np.isfinite(fill().read(names[-1])).all() else 1)

    monkeypatch.setattr(cache, "read_fast", read)
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=work) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
        assert process.exitcode == 0
    assert len((scored / "decoded").read_text().splitlines()) == 12


def test_who_finds_all_pictures_writes_nothing(scored, fill):
    """Except LMDB's table of readers."""
    folder = fill().folder

    def times():
        paths = [folder, *folder.iterdir()]
        return {path: path.stat().st_mtime_ns for path in paths if path.name != "lock.mdb"}

    before = times()
    time.sleep(0.01)
    fill()
    assert times() == before


def test_a_disk_that_becomes_full_keeps_what_was_written(scored, names, run, monkeypatch):
    monkeypatch.setattr(cache, "BATCH", 2)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, limits[1]))
    try:
        status, _, err = run(arguments(scored, "tad66k", cache=scored / "c"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert status == 2
    assert len(err.splitlines()) == 1
    assert "bilinear-256-fast/data.mdb: pictures cannot be written (" in err
    missing = Cache(scored / "c", Resize(256, "bilinear"), "fast").outdated(names, scored / "images")
    assert (~missing).sum() == 4  # of 196 KiB each
    store = filled(scored / "c", Resize(256, "bilinear"), "fast", names, scored / "images")
    assert_stored(store, names, scored / "images")
