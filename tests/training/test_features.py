"""A frozen network and its head: features are computed once; training on them is training through the network."""

import logging
import os
import signal
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from helpers.data import arguments, make_pictures
from helpers.networks import make_weights
from helpers.runs import metrics, refused, stop_after_an_epoch, table, weights
from torch import nn

import models
import predict
from dataset import Splits, Transform, make_loader, to_input
from iaa.errors import InputError
from iaa.photographs.labels import FORMATS, find_images, read_labels
from iaa.runtime.signals import StopSignal
from iaa.training import build, features
from iaa.training.engine import Trainer
from iaa.training.features import Head
from iaa.training.steps import Precision, Schedule, Stepper, make_optimizer
from models.purpose import attach

CPU = Precision(torch.device("cpu"))
RESNET = "timm/test_resnet"


@pytest.fixture
def released(tmp_path):
    """A file as the released checkpoints: ten outputs, points of the batch, tensors only."""
    return make_weights(tmp_path / "released.pth", points="batch", bare=True)


@pytest.fixture
def computed(monkeypatch):
    """The number of pictures of each batch that went through a network for its features."""
    compute, sizes = features.compute_features, []

    def count(network, images):
        sizes.append(len(images))
        return compute(network, images)

    monkeypatch.setattr(features, "compute_features", count)
    return sizes


def freeze(folder, weights, dataset="ava", **options):
    frozen = {"freeze_backbone": True, "path_to_model_weight": weights, "model": None, "num_epoch": 3}
    return arguments(folder, dataset, **frozen | options)


def ava_labels(ava):
    labels = read_labels(ava / "train.csv", FORMATS["ava"])
    return find_images(labels, ava / "images", False)[0]


def make_loaders(ava, network, decode="pil"):
    """Loaders of features, all of them of train.csv, whose three batches have five, five and two rows; and the head."""
    labels, head = ava_labels(ava), Head(network)
    sizes = {"batch_size": 5, "eval_batch_size": 5, "num_workers": 0}
    options = SimpleNamespace(
        path_to_images=ava / "images", decode=decode, model="eat_test", seed=0, loss="mse", **sizes
    )
    splits = Splits(labels, labels, labels)
    settings = FORMATS["ava"], CPU, ava / "features", StopSignal()
    return build.make_feature_loaders(options, splits, head, *settings), head


def load(path, name="eat_test", refinement="released"):
    settings = {} if name == RESNET else {"interest_points": "image", "refinement": refinement}
    network = models.create_model(name, 10, **settings)
    if path:
        models.load_weights(network, path)
    return network


@pytest.mark.slow
def test_own_scores_on_a_released_checkpoint(scored, run, released, caplog):
    """From ten outputs to one, and from points of the batch to each picture's own; the result is a whole network."""
    caplog.set_level(logging.INFO)
    status, result, err = run(freeze(scored, released, "csv", score_max=10))
    assert status == 0, err
    assert result["interest_points"] == "image"
    told = "released.pth was trained with --interest_points batch; now image: the features of a picture may"
    assert caplog.text.count(told) == 1
    before, best = models.read_weights(released), models.read_weights(result["files"]["best"])
    changed = {name for name, value in best.state.items() if not torch.equal(value, before.state[name])}
    assert changed == {"cls_head.weight", "cls_head.bias"}
    assert len(best.state["cls_head.bias"]) == 1
    assert (best.purpose.dataset, best.purpose.scale) == ("csv", (0, 10))
    assert any("weights that do not say which photographs they were trained on" in n for n in result["notes"])
    found = pd.read_csv(result["files"]["predictions"])
    paths = [scored / "images" / name for name in found["image"]]
    scores = predict.Scorer(result["files"]["best"], device="cpu")(paths)
    assert scores == pytest.approx(found["predicted_score"] * 10, abs=1e-4)
    given = {"eval": True, "score_max": 10, "model": None, "path_to_model_weight": result["files"]["best"]}
    status, evaluated, err = run(arguments(scored, "csv", **given, experiment_dir_name=scored / "eval"))
    assert status == 0, err
    assert metrics(evaluated) == pytest.approx(metrics(result), abs=1e-5, nan_ok=True)


@pytest.mark.slow
def test_a_file_of_timm_keeps_its_statistics_of_batch_normalisation(ava, run):
    torch.manual_seed(0)
    network = timm.create_model("test_resnet", num_classes=1000)
    network(torch.randn(4, 3, 160, 160))  # moves the running statistics
    torch.save(network.state_dict(), ava / "resnet.pth")
    status, result, err = run(freeze(ava, ava / "resnet.pth", model=RESNET, tta="flip"))
    assert status == 0, err
    given = {"eval": True, "model": None, "path_to_model_weight": result["files"]["best"], "tta": "flip"}
    _, evaluated, _ = run(arguments(ava, **given, experiment_dir_name=ava / "eval"))
    assert metrics(evaluated) == pytest.approx(metrics(result), abs=1e-5)
    best = torch.load(result["files"]["best"], weights_only=True)
    same = {name for name, value in network.state_dict().items() if torch.equal(best[name], value)}
    assert set(best) - same == {"fc.weight", "fc.bias"}
    assert len(best["fc.bias"]) == 10


@pytest.mark.parametrize("name", ["eat_test", RESNET])
def test_training_on_features_is_training_the_head_through_the_network(ava, name):
    """In evaluation mode, with the same pictures mirrored in the same order."""
    labels, states = ava_labels(ava), []
    for is_frozen in (False, True):
        torch.manual_seed(0)
        network = load(None, name)
        if is_frozen:
            loaders, trained = make_loaders(ava, network)
            loader = loaders["train"]
        else:
            trained = network.eval().requires_grad_(False)
            trained.train = lambda: None
            network.get_classifier().requires_grad_(True)
            loader = make_loader(
                labels, ava / "images", Transform(FORMATS["ava"], network.img_size, True), 5, 0
            )
        optimizer = make_optimizer(network.get_classifier(), "adamw", 0.1)
        stepper = Stepper(trained, optimizer, Schedule(1e-2, 2), CPU)
        trainer = Trainer(trained, stepper, nn.functional.mse_loss, ava)
        for epoch in range(2):
            trainer.progress.epoch, trainer.progress.step = epoch, 0
            trainer.train_epoch(loader, StopSignal())
        assert not network.training
        states.append(network.state_dict())
    torch.testing.assert_close(states[1], states[0], atol=1e-5, rtol=1e-4)


def test_features_are_of_the_picture_and_of_its_mirror_image(ava, released):
    network, labels = load(released), ava_labels(ava)
    found = make_loaders(ava, network)[0]["train"].dataset.features
    transform = Transform(FORMATS["ava"], network.img_size, train=False)
    [batch] = make_loader(labels, ava / "images", transform, 12, 0)
    images = to_input(batch, CPU.device)
    with torch.no_grad():
        for view, pictures in enumerate((images, images.flip(-1))):
            torch.testing.assert_close(
                network.cls_head(found[..., view]), network(pictures), atol=1e-5, rtol=0
            )


def test_features_are_computed_once_for_a_content_and_a_network(ava, released, computed):

    def count(network=None, **settings):
        computed.clear()
        make_loaders(ava, network or load(released), **settings)
        return sum(computed) - 2  # two are the head's own

    assert count() == 12
    assert count() == 0
    first, second = (ava / "images" / name for name in ava_labels(ava).images[:2])
    before = first.stat()
    make_pictures(ava / "images", [first.name], seed=77)
    os.utime(first, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert count() == 1  # another content of the same age
    os.utime(second)
    assert count() == 0  # the same content, touched
    assert count(decode="fast") == count(load(released, refinement="off")) == 12
    other = load(released)
    other.stages[0].mlps[0].chunk.linear1.bias.data[0] += 1e-3
    assert count(other) == 12
    other = load(released)
    other.reset_classifier(10)
    assert count(other) == 0  # features are before the head


def test_a_damaged_file_of_features_is_named(ava, released):
    make_loaders(ava, load(released))
    [path] = ava.glob("features/*/*.npz")
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(InputError, match=rf"{path.name}: is damaged .*; remove it, and it is computed again"):
        make_loaders(ava, load(released))


@pytest.mark.slow
def test_stopped_among_the_features_and_in_training_it_ends_as_an_uncut_run(
    ava, run, released, computed, monkeypatch, caplog
):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(features, "CHUNK", 4)
    given = {"batch_size": 2, "ema_decay": 0.5}
    _, whole, err = run(freeze(ava, released, experiment_dir_name=ava / "whole", **given))
    assert whole, err

    def stop(network, images):
        if sum(computed) >= 10:
            os.kill(os.getpid(), signal.SIGTERM)
        return compute(network, images)

    compute = features.compute_features
    with monkeypatch.context() as patch:
        computed.clear()
        patch.setattr(features, "compute_features", stop)
        status, _, err = run(freeze(ava, released, cache=ava / "cache", **given))
    assert status == 143
    assert err.endswith(f"--resume --experiment_dir_name {ava / 'run'} goes on from the last checkpoint\n")
    with monkeypatch.context() as patch:
        caplog.clear()
        stop_after_an_epoch(patch)
        assert run(["--resume", "--experiment_dir_name", ava / "run"])[0] == 130
    assert "features of 4 of 12 pictures are to be computed" in caplog.text
    computed.clear()
    status, resumed, err = run(["--resume", "--experiment_dir_name", ava / "run"])
    assert status == 0, err
    assert sum(computed) == 2  # of the comparison of the head
    assert metrics(resumed) == metrics(whole)
    states = [weights(ava / name) for name in ("whole", "run")]
    assert set(states[0]) == {"classifier.weight", "classifier.bias", "_extra_state"}
    assert all(np.array_equal(states[0][name], states[1][name]) for name in states[0])
    pd.testing.assert_frame_equal(table(ava / "run"), table(ava / "whole"), check_exact=True)
    make_weights(released, points="batch", bare=True, seed=1)
    status, _, err = run(["--resume", "--experiment_dir_name", ava / "run"])
    assert status == 2
    assert "the weights of the frozen network have changed" in err


class Small(nn.Module):
    """A network of timm's kind."""

    def __init__(self, classifier, img_size=32):
        super().__init__()
        self.img_size, self.stem, self.fc = img_size, nn.Conv2d(3, 4, 16, 16), classifier
        attach(self, {})

    def get_classifier(self):
        return self.fc

    def forward_features(self, images):
        return self.stem(images)

    def forward_head(self, x, pre_logits=False):
        x = x.mean((2, 3), keepdim=True)
        return x.flatten(1) if pre_logits else self.fc(x).flatten(1)

    def forward(self, images):
        return self.forward_head(self.forward_features(images))


def test_a_classifier_may_be_a_convolution():
    head = Head(Small(nn.Conv2d(4, 10, 1))).train()
    assert not head.classifier.training
    assert [name for name, value in head.whole_network.named_parameters() if value.requires_grad] == [
        "fc.weight",
        "fc.bias",
    ]


def test_a_network_without_one_classifier_is_refused():
    doubled = Small(nn.Conv2d(4, 10, 1))
    doubled.forward = lambda images: 2 * Small.forward(doubled, images)
    for network in (doubled, Small(nn.ModuleList([nn.Conv2d(4, 10, 1)]))):
        with pytest.raises(InputError, match="has no single layer after its features; train all of it"):
            Head(network)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"path_to_model_weight": None}, "--freeze_backbone needs --path_to_model_weight or --pretrained"),
        ({"eval": True}, "--freeze_backbone and --eval exclude each other"),
        ({"grad_checkpoint": True}, "--grad_checkpoint and --freeze_backbone exclude each other: the head"),
        ({"compile": True}, "--compile and --freeze_backbone exclude each other"),
        ({"released_protocol": True}, "--released_protocol and --freeze_backbone exclude each other"),
        ({"layer_decay": 0.5}, "--layer_decay and --freeze_backbone exclude each other"),
        ({"drop_path_rate": 0.1}, "--drop_path_rate and --freeze_backbone exclude each other"),
        ({"explore_same": 0.1}, "--explore_same and --freeze_backbone exclude each other"),
        ({"refinement": "scheduled"}, "--freeze_backbone: no schedule applies to a frozen network"),
        ({"interest_points": "batch"}, "use --interest_points image"),
    ],
)
def test_what_does_not_go_with_a_frozen_network_is_one_line(ava, run, released, options, problem):
    refused(run, ava, problem, **{"freeze_backbone": True, "path_to_model_weight": released} | options)


@pytest.mark.slow
def test_plain_dat_stays_plain_dat_and_several_processes_are_refused(ava, run, released, monkeypatch):
    state = models.read_weights(released).state
    torch.save({name: value for name, value in state.items() if "ref_point14" not in name}, ava / "dat.pth")
    status, result, err = run(freeze(ava, ava / "dat.pth", experiment_dir_name=ava / "dat"))
    assert status == 0, err
    assert (result["interest_points"], result["refinement"]) == ("grid", "off")
    given = {"freeze_backbone": True, "interest_points": "image", "path_to_model_weight": ava / "dat.pth"}
    refused(run, ava, "dat.pth: has no interest points, and frozen ones would stay random", **given)
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "x", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    refused(run, ava, "start it without torchrun", **given)
