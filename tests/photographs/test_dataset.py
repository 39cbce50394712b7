"""Transforms, splits and the order of batches."""

import pickle
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
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
from iaa.photographs.labels import FORMATS, Labels, read_labels
from iaa.training.build import make_loaders


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


@pytest.mark.parametrize(("length", "sizes"), [(17, [8, 9]), (18, [8, 8, 2]), (16, [8, 8]), (1, [1])])
def test_a_last_batch_of_one_joins_the_batch_before_it_by_join_single(length, sizes):
    plain, joined = sampler(length, 8, True), sampler(length, 8, True)
    plain.epoch = joined.epoch = 3
    joined.join_single()
    assert [len(batch) for batch in joined] == sizes
    assert len(joined) == len(sizes)
    assert joined.num_images == length
    assert [row[0] for batch in joined for row in batch] == [row[0] for batch in plain for row in batch]


def test_only_networks_with_batch_normalisation_and_losses_over_the_batch_join_batches(ava):
    labels = read_labels(ava / "train.csv", FORMATS["ava"])
    options = SimpleNamespace(eval=False, path_to_images=ava / "images", num_workers=0, decode="pil", seed=0)
    options.released_protocol, options.cache, options.batch_size, options.eval_batch_size = True, None, 11, 11

    def lengths(name, loss="emd"):
        options.loss = loss
        splits = Splits(labels, labels, labels)
        model = models.create_model(name)
        loaders = make_loaders(options, splits, model, FORMATS["ava"], None)
        return {split: [len(rows) for rows in loader.batch_sampler] for split, loader in loaders.items()}

    assert len(labels) == 12
    assert lengths("eat_nano") == {"train": [11, 1], "val": [11, 1], "test": [11, 1]}
    joined = {"train": [12], "val": [11, 1], "test": [11, 1]}
    assert lengths("timm/test_resnet") == lengths("eat_nano", "emd+0.5*plcc") == joined
    labels = labels.subset(np.array([0]))
    assert lengths("eat_nano")["train"] == [1]
    with pytest.raises(InputError, match=r"train\.csv: 1 photograph per process; --loss plcc needs two"):
        lengths("eat_nano", "plcc")
