"""Labels, transforms and the order of batches."""

import pickle
import random
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.data import AVA_COLUMNS, make_pictures
from PIL import Image
from sklearn.datasets import load_sample_images
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torchvision.transforms.functional import normalize, to_tensor

import models
from dataset import (
    ResumableBatchSampler,
    Splits,
    Transform,
    batches,
    make_loader,
    normalize_images,
    read_splits,
)
from iaa.errors import InputError
from iaa.photographs import demo
from iaa.photographs.labels import FORMATS, Labels, csv_format, read_labels
from iaa.training.build import make_loaders
from util import compute_metrics


@pytest.fixture(scope="module")
def photograph():
    return Image.fromarray(load_sample_images().images[0])


def as_tensor(image):
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
    return (pixels - torch.tensor(IMAGENET_DEFAULT_MEAN).view(3, 1, 1)) / torch.tensor(
        IMAGENET_DEFAULT_STD
    ).view(3, 1, 1)


def seen(transform, photograph, seed):
    """The picture that the network sees, before normalisation."""
    pixels, flip = transform(np.asarray(transform.resize.pil(photograph)), random.Random(seed))
    return pixels[:, ::-1] if flip else pixels


@pytest.mark.parametrize(
    ("dataset", "resample"), [("ava", Image.Resampling.BICUBIC), ("tad66k", Image.Resampling.BILINEAR)]
)
def test_evaluation_sees_pils_own_resize_to_the_pixel(photograph, dataset, resample):
    transform = Transform(FORMATS[dataset], 224, train=False)
    pixels, flip = transform(np.asarray(transform.resize.pil(photograph)), random.Random(0))
    found = normalize_images(torch.tensor(pixels).permute(2, 0, 1)[None], torch.tensor([flip]))
    assert not flip
    torch.testing.assert_close(
        found[0], as_tensor(photograph.resize((224, 224), resample)), atol=1e-6, rtol=0
    )


def test_network_input_is_torchvisions_to_the_bit_and_mirrors_the_flipped(photograph):
    picture = photograph.resize((32, 32))
    expected = normalize(to_tensor(picture), IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
    pixels = torch.from_numpy(np.stack([np.asarray(picture)] * 2)).permute(0, 3, 1, 2)
    plain, mirrored = normalize_images(pixels, torch.tensor([False, True]))
    assert torch.equal(plain, expected)
    assert torch.equal(mirrored, expected.flip(-1))


def test_ava_trains_on_the_bicubic_resize_flipped_half_of_the_time(photograph):
    plain = np.array(photograph.resize((224, 224), Image.Resampling.BICUBIC))
    transform = Transform(FORMATS["ava"], 224, train=True)
    pictures = [seen(transform, photograph, seed) for seed in range(40)]
    flipped = [np.array_equal(picture, plain[:, ::-1]) for picture in pictures]
    assert all(
        flip or np.array_equal(picture, plain) for flip, picture in zip(flipped, pictures, strict=True)
    )
    assert 10 < sum(flipped) < 30


def test_tad66k_trains_on_crops_of_the_bilinear_256_resize(photograph):
    resized = np.array(photograph.resize((256, 256), Image.Resampling.BILINEAR))
    transform = Transform(FORMATS["tad66k"], 224, train=True)
    corners = set()
    for seed in range(20):
        crop = seen(transform, photograph, seed)
        assert crop.shape == (224, 224, 3)
        found = [
            (y, x, flip)
            for flip in (False, True)
            for y in range(33)
            for x in range(33)
            if np.array_equal(crop[0], (resized[:, ::-1] if flip else resized)[y, x : x + 224])
            and np.array_equal(crop, (resized[:, ::-1] if flip else resized)[y : y + 224, x : x + 224])
        ]
        assert found
        corners.add(found[0])
    assert len(corners) > 15


def test_ava_columns_are_votes_of_1_to_10(ava):
    labels = read_labels(ava / "test.csv", FORMATS["ava"])
    table = pd.read_csv(ava / "test.csv")
    assert labels.images.tolist() == [f"{i}.jpg" for i in table["image_id"]]
    votes = table[[f"score{i}" for i in range(2, 12)]].to_numpy()
    np.testing.assert_allclose(labels.targets, votes / votes.sum(1, keepdims=True), rtol=1e-6)


def test_tad66k_scores_are_tenths(scored):
    labels = read_labels(scored / "test.csv", FORMATS["tad66k"])
    np.testing.assert_allclose(
        labels.targets[:, 0], pd.read_csv(scored / "test.csv")["score"] / 10, rtol=1e-6
    )


def test_any_csv_with_vote_columns(tmp_path):
    (tmp_path / "a.csv").write_text("note,vote_3,vote_1,image,vote_2\nx,1,2,a.png,1\n")
    form = csv_format(tmp_path / "a.csv", (0, 1), None)
    assert form.vote_columns == ("vote_1", "vote_2", "vote_3")
    assert form.threshold == 2.0
    assert read_labels(tmp_path / "a.csv", form).targets.tolist() == [[0.5, 0.25, 0.25]]


def test_any_csv_with_scores_on_a_scale(tmp_path):
    (tmp_path / "a.csv").write_text("image,score\na.png,3\n")
    form = csv_format(tmp_path / "a.csv", (1, 5), None)
    assert read_labels(tmp_path / "a.csv", form).targets.tolist() == [[0.5]]
    assert form.threshold == 0.5
    assert csv_format(tmp_path / "a.csv", (1, 5), 4).threshold == 0.75


def test_byte_order_mark_windows_lines_blanks_and_spaces_are_read(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbfimage, score\r\n a.jpg , 2.5\r\n\r\nb.jpg,5\r\n\r\n")
    labels = read_labels(tmp_path / "a.csv", FORMATS["tad66k"])
    assert labels.images.tolist() == ["a.jpg", "b.jpg"]
    assert labels.targets.tolist() == [[0.25], [0.5]]


STARTS = [
    ("fork", 2),
    *(pytest.param(*way, marks=pytest.mark.slow) for way in (("forkserver", 2), ("spawn", 1))),
]


@pytest.mark.parametrize(("start", "processes"), STARTS)
def test_order_and_augmentation_do_not_depend_on_the_workers(ava, start, processes, monkeypatch):
    monkeypatch.setattr("iaa.photographs.workers.START", start)
    labels = read_labels(ava / "train.csv", FORMATS["ava"])

    def epoch(workers, number):
        loader = make_loader(labels, ava / "images", Transform(FORMATS["ava"], 32, True), 5, workers, seed=3)
        return [(batch.names, batch.images, batch.flips, batch.targets) for batch in batches(loader, number)]

    alone, pair = epoch(0, 4), epoch(processes, 4)
    assert [len(names) for names, *_ in alone] == [5, 5, 2]
    for (names, *tensors), (others, *same) in zip(alone, pair, strict=True):
        assert names == others
        assert all(map(torch.equal, tensors, same))
    assert [names for names, *_ in alone] != [names for names, *_ in epoch(0, 5)]


def test_a_worker_is_given_no_labels_but_those_of_its_batches(ava):
    labels = read_labels(ava / "train.csv", FORMATS["ava"])
    many = labels.subset(np.zeros(100_000, int))
    loader = make_loader(many, ava / "images", Transform(FORMATS["ava"], 32, True), 5, 2)
    assert len(loader) == 20_000
    assert len(pickle.dumps((loader.dataset, loader.collate_fn))) < 2_000
    assert len(pickle.dumps(next(iter(loader.batch_sampler)))) < 2_000


def test_evaluation_keeps_the_csvs_order(ava):
    labels = read_labels(ava / "test.csv", FORMATS["ava"])
    loader = make_loader(labels, ava / "images", Transform(FORMATS["ava"], 32, False), 4, 0)
    assert [name for batch in batches(loader) for name in batch.names] == labels.images.tolist()


def sampler(length, batch_size, shuffle, *process):
    """Of rows whose images are called 0, 1, 2, ..."""
    names, targets = np.arange(length).astype(str), np.zeros((length, 1), np.float32)
    return ResumableBatchSampler(
        Labels("a.csv", names, targets, np.zeros(length)), batch_size, 0, shuffle, *process
    )


def drawn(sampler):
    """Its batches: the row and the seed of each sample."""
    return [[(int(sample.name), sample.seed) for sample in batch] for batch in sampler]


def test_an_epoch_has_every_row_once():
    shuffled = sampler(50, 8, True)
    rows = [row for batch in drawn(shuffled) for row, _ in batch]
    assert sorted(rows) == list(range(50))
    assert rows != list(range(50))
    assert (len(shuffled), shuffled.num_images) == (7, 50)


def test_an_epoch_goes_on_where_it_stopped():
    shuffled = sampler(50, 8, True)
    whole = drawn(shuffled)
    shuffled.start = 3
    assert drawn(shuffled) == whole[3:]
    assert len(shuffled) == 7


@pytest.mark.parametrize(("length", "world"), [(48, 2), (50, 3), (7, 4), (1, 4)])
def test_processes_share_the_shuffled_rows_and_have_as_many(length, world):
    alone = drawn(sampler(length, 10**6, True))[0]
    samplers = [sampler(length, 4, True, rank, world) for rank in range(world)]
    shares = [[sample for batch in drawn(each) for sample in batch] for each in samplers]
    assert len({len(share) for share in shares}) == len({len(each) for each in samplers}) == 1
    assert all(each.num_images == len(share) for each, share in zip(samplers, shares, strict=True))
    assert {sample for share in shares for sample in share} == set(alone)
    assert sum(len(share) for share in shares) - length < world


@pytest.mark.parametrize(("length", "world"), [(48, 2), (50, 3), (7, 4)])
def test_processes_share_whole_batches_in_the_csvs_order(length, world):
    alone = drawn(sampler(length, 4, False))
    samplers = [sampler(length, 4, False, rank, world) for rank in range(world)]
    shares = [drawn(each) for each in samplers]
    assert [shares[i % world][i // world] for i in range(len(alone))] == alone
    assert [len(each) for each in samplers] == [len(share) for share in shares]
    assert [each.num_images for each in samplers] == [sum(map(len, share)) for share in shares]


def test_validation_is_held_out_of_train_where_there_is_no_val_csv(scored):
    splits = read_splits(scored, scored / "images", FORMATS["tad66k"], val_share=0.25, seed=1)
    names = set(splits.train.images) | set(splits.val.images)
    assert (len(splits.train), len(splits.val), len(names)) == (9, 3, 12)
    again = read_splits(scored, scored / "images", FORMATS["tad66k"], val_share=0.25, seed=1)
    assert again.val.images.tolist() == splits.val.images.tolist()


def test_released_protocol_selects_on_test(ava):
    splits = read_splits(ava, ava / "images", FORMATS["ava"], select_on_test=True)
    assert splits.val is splits.test
    assert any("selected on test.csv" in note for note in splits.notes)


def test_an_image_in_two_splits_is_told(ava):
    lines = (ava / "train.csv").read_text().splitlines()
    with (ava / "val.csv").open("a") as file:
        file.write(lines[1] + "\n")
    splits = read_splits(ava, ava / "images", FORMATS["ava"])
    assert any("1 images are in train and in val" in note for note in splits.notes)


def test_demo_is_ava_with_votes_that_follow_the_damage(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "COUNTS", {"train": 30, "val": 10, "test": 10})
    assert demo.build(tmp_path, tmp_path / "images")
    splits = read_splits(tmp_path, tmp_path / "images", FORMATS["demo"])
    assert [len(s) for s in (splits.train, splits.val, splits.test)] == [30, 10, 10]
    assert not splits.notes
    first = {p.name: p.read_bytes() for p in (tmp_path / "images").glob("*.jpg")}
    assert not demo.build(tmp_path, tmp_path / "images")
    (tmp_path / "demo_version.txt").write_text("older")
    (tmp_path / "images" / "1.jpg").write_bytes(b"damaged")
    assert demo.build(tmp_path, tmp_path / "images")
    assert {p.name: p.read_bytes() for p in (tmp_path / "images").glob("*.jpg")} == first
    none, full = np.zeros(5), np.ones(5)
    assert demo.mean_opinion(none) == 9
    assert demo.mean_opinion(full) == 1
    for kind in range(5):
        some = none.copy()
        some[kind] = 0.5
        assert demo.mean_opinion(some) < 9


def test_demo_splits_share_no_pixel():
    bands = [(band, split) for split, bands in demo.BANDS.items() for band in bands]
    for (left, right), split in bands:
        assert right - left >= demo.CROP[1]
        for (other_left, other_right), other in bands:
            assert split == other or right <= other_left or other_right <= left


def test_demo_never_writes_over_other_files(tmp_path):
    (tmp_path / "mine.csv").write_text("mine")
    with pytest.raises(InputError, match="holds files that are not the demo's"):
        demo.build(tmp_path, tmp_path / "images")
    make_pictures(tmp_path / "images", ["1.jpg"])
    (tmp_path / "demo_version.txt").write_text("being built")
    with pytest.raises(InputError, match="images: holds files that are not the demo's"):
        demo.build(tmp_path, tmp_path / "images")


def test_a_mean_opinion_of_exactly_5_is_low(tmp_path):
    """Its distribution in float32 need not sum to exactly 5; the votes do."""
    rows = [
        [0, 0, 1, 0, 0, 0, 1, 0, 0, 0],
        [0, 0, 1, 1, 1, 1, 1, 0, 0, 0],
        [0, 3, 0, 7, 5, 7, 0, 3, 0, 0],
        [0, 0, 0, 0, 3, 4, 0, 0, 0, 0],
    ]
    table = pd.DataFrame(rows, columns=AVA_COLUMNS[1:])
    table.insert(0, "image_id", range(len(rows)))
    table.to_csv(tmp_path / "a.csv", index=False)
    labels = read_labels(tmp_path / "a.csv", FORMATS["ava"])
    assert labels.mos.tolist() == [5.0, 5.0, 5.0, pytest.approx(39 / 7)]
    predicted = np.zeros((4, 10))
    predicted[:, 4] = [0.9, 0.8, 0.7, 1.5]  # scores 4.5, 4, 3.5 and 7.5
    assert compute_metrics(FORMATS["ava"].match_scores(predicted, labels))["accuracy"] == 1.0


def test_a_score_at_a_given_threshold_is_low(tmp_path):
    (tmp_path / "a.csv").write_text("image,score\na.png,0.6\nb.png,0.7\n")
    form = csv_format(tmp_path / "a.csv", (0.0, 1.0), 0.6)
    mos = read_labels(tmp_path / "a.csv", form).mos
    assert (mos > form.threshold).tolist() == [False, True]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,score, score\na,1,2\n", "column score stands there more than once"),
        ("image,image ,score\na,b,1\n", "column image stands there more than once"),
        ("image,vote_1,vote_01\na,1,2\n", "not numbered one after the other"),
        ("image,1,2,4\na,1,2,3\n", "not numbered one after the other"),
        (
            "image,score\na.jpg,1,2\nb.jpg,0\n",
            "line 2: 3 columns, not 2; a value with a ',' in it needs quotes",
        ),
        ("image,1,2\na,1e308,1e308\n", "too many votes"),
        ("image,score\n./a.jpg,1\na.jpg,1\n", "'a.jpg': stands there a second time"),
    ],
)
def test_ambiguous_csvs_are_refused(tmp_path, text, message):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        read_labels(tmp_path / "a.csv", csv_format(tmp_path / "a.csv", (0.0, 1.0), None))


def test_a_scale_that_does_not_fit_the_columns_is_refused(tmp_path):
    (tmp_path / "votes.csv").write_text("image,1,2\na,1,2\n")
    with pytest.raises(InputError, match="--score_max belong"):
        csv_format(tmp_path / "votes.csv", (0.0, 5.0), None)
    with pytest.raises(InputError, match="--threshold 7 lies outside"):
        csv_format(tmp_path / "votes.csv", (0.0, 1.0), 7)


@pytest.mark.parametrize(("length", "sizes"), [(17, [8, 9]), (18, [8, 8, 2]), (16, [8, 8]), (1, [1])])
def test_a_last_batch_of_one_joins_the_batch_before_it_where_that_is_asked_for(length, sizes):
    plain, joined = (sampler(length, 8, True, 0, 1, join) for join in (False, True))
    plain.epoch = joined.epoch = 3
    assert [len(batch) for batch in joined] == sizes
    assert len(joined) == len(sizes)
    assert joined.num_images == length
    assert [row[0] for batch in joined for row in batch] == [row[0] for batch in plain for row in batch]
    assert [len(batch) for batch in sampler(length, 8, False, 0, 1, True)] == [len(batch) for batch in plain]


def test_only_networks_with_batch_normalisation_join_batches(ava):
    labels = read_labels(ava / "train.csv", FORMATS["ava"])
    options = SimpleNamespace(eval=False, path_to_images=ava / "images", num_workers=0, decode="pil", seed=0)
    options.released_protocol, options.cache, options.batch_size, options.eval_batch_size = True, None, 11, 11

    def lengths(name):
        splits = Splits(labels, labels, labels)
        model = models.create_model(name)
        loaders = make_loaders(options, splits, model, FORMATS["ava"], None)
        return {split: [len(rows) for rows in loader.batch_sampler] for split, loader in loaders.items()}

    assert len(labels) == 12
    assert lengths("eat_nano") == {"train": [11, 1], "val": [11, 1], "test": [11, 1]}
    assert lengths("timm/test_resnet") == {"train": [12], "val": [11, 1], "test": [11, 1]}
