"""Training the head of a frozen network, on features that are computed once for each picture and kept in files."""

from __future__ import annotations

import hashlib
import logging
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from dataset import Batch, ResumableBatchSampler, Sample, batches, to_input
from iaa.errors import InputError, Interrupted
from iaa.photographs.labels import Labels
from iaa.photographs.workers import identity, make_worker_loader, map_parallel
from iaa.runtime.files import atomic_write
from iaa.runtime.progress import progress_bar
from iaa.runtime.signals import StopSignal, stop_errors
from iaa.training.engine import oom_hint
from iaa.training.steps import Precision

log = logging.getLogger("eat")

CHUNK = 64  # pictures in a file; a kill loses the features of fewer


class Head(nn.Module):
    """The classifier of a frozen network. It takes features instead of pictures; only its tensors have gradients.

    Features are (B, F, 2), of a picture and of its mirror image, so that `flip(-1)` mirrors them as it mirrors pictures.
    `whole_network` shares its classifier with the head, and stays in evaluation mode, without drop path, and with fixed
    batch normalisation. The state_dict has the head and a digest of all other weights, and loads only beside the same ones.
    Raises InputError if the network's outputs are not those of a single classifier on `compute_features`.
    """

    statistics = None  # features are not normalised, as pixels are

    def __init__(self, network: nn.Module):
        super().__init__()
        self.__dict__["whole_network"] = network.eval().requires_grad_(False)  # not a part of this module
        if not self._takes_classifier():
            name = network.purpose.model
            problem = f"{name} has no single layer after its features; train all of it"
            raise InputError(f"--freeze_backbone: {problem}")
        self.classifier.requires_grad_(True)
        in_head = {id(value) for value in self.classifier.state_dict(keep_vars=True).values()}
        digest = hashlib.sha256()
        for name, value in network.state_dict(keep_vars=True).items():
            if id(value) not in in_head:
                digest.update(name.encode())
                digest.update(value.detach().cpu().contiguous().numpy())
        self.backbone_digest = digest.hexdigest()

    @torch.inference_mode()
    def _takes_classifier(self) -> bool:
        """Take over the network's classifier. Returns whether head and network give equal outputs."""
        network = self.whole_network
        shape = (2, 3, network.img_size, network.img_size)
        images = torch.linspace(-2, 2, np.prod(shape), device=next(network.parameters()).device).view(shape)
        try:
            self.classifier = network.get_classifier()
            return torch.allclose(self(compute_features(network, images)), network(images), atol=1e-4)
        except Exception:  # networks of timm may have no head, several, or another kind
            return False

    def forward(self, features: Tensor) -> Tensor:
        """(B, F, 2) to the raw outputs for the pictures, (B, outputs)."""
        if isinstance(self.classifier, nn.Conv2d):
            return self.classifier(features[..., :1, None]).flatten(1)
        return self.classifier(features[..., 0])

    def train(self, mode: bool = True) -> Head:
        return super().train(False)

    def get_extra_state(self) -> str:
        return self.backbone_digest

    def set_extra_state(self, state: str) -> None:
        if state != self.backbone_digest:
            raise ValueError("the weights of the frozen network have changed")


def compute_features(network: nn.Module, images: Tensor) -> Tensor:
    """The input (B, F, 2) of the classifier of EAT or timm, see `Head`. images: (B, 3, H, W), normalised."""
    views = images, images.flip(-1)
    features = [network.forward_head(network.forward_features(view), pre_logits=True) for view in views]
    return torch.stack(features, -1)


def read_features(
    head: Head,
    labels: Labels,
    images: Path,
    folder: Path,
    load: Callable[[Labels], DataLoader],
    precision: Precision,
    stop: StopSignal,
) -> Tensor:
    """(N, F, 2) float32: features of the pictures, in the order of the labels.

    One process at a time computes the features that `folder` lacks, and adds them. The folder belongs to one network,
    transform and decoder. Each of its files holds a chunk's `features`, and `digests` (n,) of the picture files' contents.
    images: the folder of the pictures. load: makes a loader of pictures in the order of the labels.
    Raises InputError for a picture that does not decode, Interrupted after a signal; whole chunks stay.
    """

    def digest(name: str) -> str:
        return hashlib.sha256((images / name).read_bytes()).hexdigest()

    # Without workers: they would take longer to start than most sets take to read.
    digests = list(map_parallel(digest, labels.images, 0, "contents of pictures", stop))
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "lock"):
        stored = _read_files(folder)
        missing = np.array([digest not in stored for digest in digests])
        counts = missing.sum(), len(digests)
        log.info("%s: features of %d of %d pictures are to be computed", folder, *counts)
        if missing.any():
            loader, lacking = load(labels.subset(missing)), np.array(digests)[missing]
            _add_features(head.whole_network, loader, lacking, folder, precision, stop)
            stored = _read_files(folder)
    return torch.from_numpy(np.stack([stored[digest] for digest in digests]))


def _add_features(
    network: nn.Module,
    loader: DataLoader,
    digests: np.ndarray,
    folder: Path,
    precision: Precision,
    stop: StopSignal,
) -> None:
    """Compute the features of a loader's pictures, whose contents have these digests, and write them chunk by chunk."""
    size, chunk = loader.batch_sampler.batch_size, []
    hint = oom_hint(size, precision.device, f"try --eval_batch_size {max(1, size // 2)}")
    with progress_bar("features", len(digests)) as shown, hint, stop_errors(stop):
        for number, batch in enumerate(batches(loader), 1):
            if stop.received:
                raise Interrupted(stop.received)
            chunk.append(_compute_batch(network, batch, precision))
            shown.update(len(batch.names))
            if number % max(1, CHUNK // size) == 0 or number == len(loader):
                written, digests = np.split(digests, [sum(map(len, chunk))])
                with atomic_write(folder / f"{written[0]}.npz", "wb") as file:
                    np.savez(file, digests=written, features=np.concatenate(chunk))
                chunk = []


def _read_files(folder: Path) -> dict[str, np.ndarray]:
    """The stored features (F, 2) by digest."""
    stored = {}
    for path in folder.glob("*.npz"):
        try:
            with np.load(path) as chunk:
                stored.update(zip(chunk["digests"].tolist(), chunk["features"], strict=True))
        except Exception as error:  # a damaged file fails in many ways
            raise InputError(f"{path}: is damaged ({error}); remove it, and it is computed again") from None
    return stored


@torch.inference_mode()
def _compute_batch(network: nn.Module, batch: Batch, precision: Precision) -> np.ndarray:
    with precision():
        features = compute_features(network, to_input(batch, precision.device, network.statistics))
    return features.float().cpu().numpy()


class FeatureDataset(Dataset):
    """Batches of features (N, F, 2), which are in the order of the labels. train: mirror at random, as `Transform` does."""

    def __init__(self, labels: Labels, features: Tensor, train: bool):
        self.features, self.train = features, train
        self.rows = {name: row for row, name in enumerate(labels.images.tolist())}

    def __getitems__(self, samples: list[Sample]) -> Batch:
        names, targets, seeds = zip(*samples, strict=True)
        flips = torch.tensor([self.train and random.Random(seed).random() < 0.5 for seed in seeds])
        features = self.features[[self.rows[name] for name in names]]
        return Batch(features, flips, torch.from_numpy(np.stack(targets)), list(names))


def make_feature_loader(
    labels: Labels, features: Tensor, batch_size: int, seed: int, train: bool
) -> DataLoader:
    """As `dataset.make_loader`, of features (N, F, 2) in the order of the labels."""
    sampler = ResumableBatchSampler(labels, batch_size, seed, train)
    settings = {"batch_sampler": sampler, "collate_fn": identity}
    settings["generator"] = torch.Generator().manual_seed(seed)  # else a loader draws from torch's
    return make_worker_loader(FeatureDataset(labels, features, train), 0, **settings)
