"""The cache of decoded pictures: the same pixels, noticed when stale or damaged, never lost when cut."""

import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import arguments, make_pictures
from test_resume import table, weights

from commands.signals import Interrupted, Watch
from dataset import Transform, batches, make_loader
from option import InputError
from photographs import cache
from photographs.cache import Cache, open_filled, repair
from photographs.decode import Resize, read_fast
from photographs.labels import FORMATS, read_labels

ROOT = Path(__file__).parent.parent
RESIZE = Resize(32, "bilinear")


@pytest.fixture
def names(scored):
    return read_labels(scored / "train.csv", FORMATS["tad66k"]).images


@pytest.fixture
def fill(scored, names):
    """Open the store of the twelve training pictures, filled."""
    return lambda **given: open_filled(scored / "c", RESIZE, "fast", names, scored / "images", 0, **given)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("train", [True, False])
def test_batches_are_the_same_from_the_cache(scored, names, train, workers):
    labels = read_labels(scored / "train.csv", FORMATS["tad66k"])
    transform = Transform("tad66k", 32, train)
    store = open_filled(scored / "c", transform.resize, "fast", names, scored / "images", workers)

    def epoch(**given):
        loader = make_loader(labels, scored / "images", transform, 5, workers, 1, decoder="fast", **given)
        return list(batches(loader, 3))

    expected = epoch()
    shutil.rmtree(scored / "images")
    for plain, kept in zip(expected, epoch(cache=store), strict=True):
        assert plain.names == kept.names
        assert torch.equal(plain.images, kept.images)
        assert torch.equal(plain.flips, kept.flips)


def test_a_run_from_the_cache_is_the_run_without_it(scored, run):
    for name, given in (("plain", {}), ("kept", {"cache": scored / "c"}), ("again", {"cache": scored / "c"})):
        words = arguments(scored, "tad66k", experiment_dir_name=scored / name, num_epoch=2, **given)
        status, _, err = run(words)
        assert status == 0, err
        assert table(scored / name).equals(table(scored / "plain"))
        state, expected = weights(scored / name), weights(scored / "plain")
        assert all(torch.equal(state[key], expected[key]) for key in expected)
    stores = sorted(path.name for path in (scored / "c").iterdir())
    assert stores == ["bilinear-224-pil", "bilinear-256-fast"]


def test_names_with_commas_quotes_and_other_letters_are_kept(tmp_path):
    names = np.array(
        ['a,b "c".png', "d\u2028e.png", "f/\u00fc g.png", "h\x85.png", "i\rj.png", "k\nl.png", "m\udcff.png"]
    )
    make_pictures(tmp_path, names)
    open_filled(tmp_path / "c", RESIZE, "pil", names, tmp_path, 0)
    store = Cache(tmp_path / "c", RESIZE, "pil").load()
    assert store.places(names).tolist() == list(range(7))
    assert store.places(names[::-1][:2]).tolist() == [6, 5]
    content = store.journal.path.read_bytes()
    for end in range(content.index(b"k\n"), len(content) + 1):  # cut anywhere in the last two rows
        store.journal.path.write_bytes(content[:end])
        assert Cache(tmp_path / "c", RESIZE, "pil").load().rows in (5, 6, 7)
    assert store.places(["nothing.png"]).tolist() == [-1]


def test_a_changed_picture_is_named_and_replaced(scored, names, fill):
    fill()
    make_pictures(scored / "images", names[3:5], seed=9)
    with pytest.raises(
        InputError, match=f"2 pictures have changed since they were cached, first {names[3]};"
    ):
        fill()
    store = Cache(scored / "c", RESIZE, "fast")
    assert repair(store, names, scored / "images", 0) == []
    store = fill()
    picture = store.read(store.places([names[3]])[0], names[3])
    np.testing.assert_array_equal(picture, read_fast(scored / "images" / names[3], RESIZE))


def test_a_damaged_picture_is_named_and_replaced(scored, names, fill, run):
    store = fill()
    with open(store.folder / "pixels.bin", "r+b") as file:
        file.seek(5 * store.size + 77)
        file.write(b"damage!")
    store = fill()
    assert store.damaged() == [names[5]]
    with pytest.raises(
        InputError, match=rf"pixels.bin: the picture of {names[5]} is damaged; `prepare_data.py cache`"
    ):
        store.read(5, names[5])
    assert repair(Cache(scored / "c", RESIZE, "fast"), names, scored / "images", 0) == []
    assert fill().damaged() == []


def test_a_run_with_a_damaged_cache_ends_in_one_line(scored, run):
    words = arguments(scored, "tad66k", cache=scored / "c")
    assert run(words)[0] == 0
    pixels = scored / "c" / "bilinear-224-pil" / "pixels.bin"
    content = bytearray(pixels.read_bytes())
    content[-1000] ^= 1
    pixels.write_bytes(content)
    status, _, err = run([*words, "--overwrite"])
    assert status == 2
    assert len(err.splitlines()) == 1
    assert f"{pixels}: the picture of test5.jpg is damaged; `prepare_data.py cache` makes it good" in err


def test_a_run_that_a_stale_cache_has_ended_leaves_nothing_behind(scored, run, command):
    words = arguments(scored, "tad66k", cache=scored / "c")
    assert run(words)[0] == 0
    make_pictures(scored / "images", ["test2.jpg"], seed=9)
    again = arguments(scored, "tad66k", cache=scored / "c", experiment_dir_name=scored / "again")
    status, _, err = run(again)
    assert status == 2
    assert "1 pictures have changed since they were cached, first test2.jpg" in err
    assert not (scored / "again").exists()
    made = (
        "cache",
        "--dataset",
        "tad66k",
        "--images",
        scored / "images",
        "--csv",
        scored,
        "--out",
        scored / "c",
    )
    assert command(*made)[0] == 0
    assert run(again)[0] == 0


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("pixels", "cut short"),
        ("index", "lines are missing"),
        ("garbage", "index.csv: damaged"),
        ("settings", "made with None"),
        ("no settings", "made with None"),
        ("no index", "index.csv: missing, beside 36864 bytes of pictures"),
        ("version", "made with"),
    ],
)
def test_a_damaged_store_is_named_and_made_anew(scored, names, fill, damage, message):
    folder = fill().folder
    lines = (folder / "index.csv").read_text().splitlines(keepends=True)
    if damage == "pixels":
        os.truncate(folder / "pixels.bin", 12 * 32 * 32 * 3 - 1)
    elif damage == "index":
        (folder / "index.csv").write_text("".join(lines[:3] + lines[4:]))
    elif damage == "garbage":
        (folder / "index.csv").write_bytes(b"\xff\xfe,,\nx\n")
    elif damage.startswith("no "):
        (folder / {"no settings": "settings.json", "no index": "index.csv"}[damage]).unlink()
    elif damage == "settings":
        (folder / "settings.json").write_text("{")
    else:
        text = (folder / "settings.json").read_text()
        (folder / "settings.json").write_text(text.replace('"version": 1', '"version": 0'))
    with pytest.raises(InputError, match=message):
        fill()
    assert repair(Cache(scored / "c", RESIZE, "fast"), names, scored / "images", 0) == []
    assert fill().rows == 12


@pytest.mark.parametrize("rows", [0, 1, 7])
def test_a_build_that_was_cut_goes_on(scored, names, fill, monkeypatch, rows):
    """Cut in the middle of a picture, then in the middle of a line."""
    whole = {path.name: path.read_bytes() for path in fill().folder.iterdir()}
    shutil.rmtree(scored / "c")
    store = open_filled(scored / "c", RESIZE, "fast", names[: max(1, rows)], scored / "images", 0)
    if rows == 0:
        header = (store.folder / "index.csv").read_bytes().splitlines(keepends=True)[0]
        (store.folder / "index.csv").write_bytes(header)
        (store.folder / "pixels.bin").write_bytes(b"")
    with open(store.folder / "pixels.bin", "ab") as file:
        file.write(bytes(500))
    if rows:
        with open(store.folder / "index.csv", "ab") as file:
            file.write(b"7,123")
    decoded = []
    original = cache.read_fast
    monkeypatch.setattr(cache, "read_fast", lambda *given: decoded.append(1) or original(*given))
    fill()
    assert len(decoded) == 12 - rows
    assert {path.name: path.read_bytes() for path in store.folder.iterdir()} == whole


def test_who_reads_from_a_store_is_not_disturbed_when_it_is_made_anew(scored, names, fill):
    reader = fill()
    before = [reader.read(place, names[place]).copy() for place in range(12)]
    (reader.folder / "settings.json").unlink()
    assert repair(Cache(scored / "c", RESIZE, "fast"), names[:3], scored / "images", 0) == []
    assert fill().rows == 12
    for place in range(12):
        np.testing.assert_array_equal(reader.read(place, names[place]), before[place])


@pytest.mark.parametrize("work", ["fill", "repair"])
def test_a_signal_ends_the_wait_for_another_process(scored, names, fill, work):
    store = Cache(scored / "c", RESIZE, "fast")
    with store.lock(), Watch() as watch:
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Interrupted):
            fill(watch=watch) if work == "fill" else repair(store, names, scored / "images", 0, watch)


def test_a_signal_ends_the_verification(scored, names, fill):
    store = fill()
    with Watch() as watch:
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(Interrupted):
            repair(store, names, scored / "images", 0, watch)


def test_a_signal_stops_a_build_which_then_goes_on(scored, names, fill, monkeypatch):
    original, calls = cache.read_fast, []

    def read(*given):
        calls.append(1)
        if len(calls) == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*given)

    monkeypatch.setattr(cache, "read_fast", read)
    with Watch() as watch, pytest.raises(Interrupted):
        fill(watch=watch)
    assert Cache(scored / "c", RESIZE, "fast").load().rows == 4
    assert fill().rows == 12
    assert len(calls) == 13


def test_a_killed_build_leaves_no_processes_behind_and_goes_on(tmp_path):
    """Its workers may be waiting to hand over a picture, larger than a pipe holds."""
    names = [f"{i}.jpg" for i in range(3000)]
    make_pictures(tmp_path, names[:1], (300, 300))
    for name in names[1:]:
        os.link(tmp_path / names[0], tmp_path / name)
    (tmp_path / "test.csv").write_text("image,score\n" + "".join(f"{name},1\n" for name in names))
    shutil.copy(tmp_path / "test.csv", tmp_path / "train.csv")
    words = ("cache", "--dataset", "tad66k", "--images", tmp_path, "--csv", tmp_path, "--out", tmp_path / "k")
    index = tmp_path / "k" / "bilinear-256-fast" / "index.csv"
    with subprocess.Popen(
        [sys.executable, "prepare_data.py", *words, "--num_workers", "2"], cwd=ROOT, stderr=subprocess.DEVNULL
    ) as process:
        while not index.is_file() or index.stat().st_size < 2000:
            assert process.poll() is None
            time.sleep(0.02)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        process.kill()
    assert len(children) >= 2
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{child}").exists() for child in children):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    store = Cache(tmp_path / "k", Resize(256, "bilinear"), "fast").load()
    assert 10 < store.rows < 3000
    assert store.damaged() == []


def test_a_picture_that_does_not_decode_is_told_and_the_others_are_kept(scored, names, fill):
    (scored / "images" / names[2]).write_bytes(b"no picture")
    with pytest.raises(InputError, match=f"{names[2]}: does not decode"):
        fill()
    store = Cache(scored / "c", RESIZE, "fast").load()
    assert (store.places(names) < 0).tolist() == [name == names[2] for name in names]


def test_processes_that_share_a_cache_fill_it_once(scored, names, fill):
    def work():
        os._exit(0 if (fill().places(names) >= 0).all() else 1)

    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=work) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    store = fill()
    assert store.rows == 12
    assert (store.folder / "pixels.bin").stat().st_size == 12 * store.size


def test_who_finds_all_pictures_writes_nothing(scored, fill):
    folder = fill().folder
    before = {path: path.stat().st_mtime_ns for path in [folder, *folder.iterdir()]}
    time.sleep(0.01)
    fill()
    assert {path: path.stat().st_mtime_ns for path in [folder, *folder.iterdir()]} == before


def test_a_disk_that_is_too_small_is_told_before(scored, names, monkeypatch, run):
    usage = shutil.disk_usage(scored)
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda _: usage._replace(free=10_000))
    status, _, err = run(arguments(scored, "tad66k", cache=scored / "c"))
    assert status == 2
    assert "bilinear-256-fast: 11 pictures take 2.1 MiB, 0.0 MiB are free; check the path and the disk" in err


def test_a_disk_that_becomes_full_keeps_what_was_written(scored, names):
    words = [*arguments(scored, "tad66k", cache=scored / "c"), "--val_share", "0.1"]
    done = subprocess.run(
        [sys.executable, "main_nni.py", *words], cwd=ROOT, capture_output=True, text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, 10**6)),
    )  # fmt: skip
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "File too large" in done.stderr
    store = Cache(scored / "c", Resize(256, "bilinear"), "fast").load()
    assert store.rows == 5  # of 192 KiB each


def test_gpu_decoding_and_a_cache_exclude_each_other(scored, run):
    status, _, err = run(arguments(scored, "tad66k", cache=scored / "c", decode="gpu"))
    assert status == 2
    assert "leave one out" in err
