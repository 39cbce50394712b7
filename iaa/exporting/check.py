"""The proof that an artifact equals its network: it is read back, fed by its own description, and compared with PyTorch."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_sample_images

from dataset import normalize_images
from iaa.exporting.description import preprocess
from iaa.exporting.output import ExportError
from iaa.networks.trained_network import TrainedNetwork
from iaa.photographs.decode import open_image, read_pil

BATCHES = (1, 2, 5)
TOLERANCE = 1e-4  # of the prediction; of the score, as a share of its scale

# An artifact as a function: images (N, 3, H, W) float32 to predictions (N, outputs) and scores (N,).
Runner = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


def sample_photographs() -> list[bytes]:
    """The bytes of five files: the two photographs of scikit-learn, and three crops of them."""
    files = [Path(name).read_bytes() for name in load_sample_images().filenames]
    for number, box in ((0, (0, 0, 320, 427)), (1, (160, 40, 560, 400)), (0, (250, 90, 610, 330))):
        with open_image(io.BytesIO(files[number])) as image, io.BytesIO() as crop:
            image.crop(box).save(crop, "PNG")
            files.append(crop.getvalue())
    return files


def evaluation_input(trained: TrainedNetwork, files: list[bytes]) -> torch.Tensor:
    """The input (N, 3, H, W) that evaluation makes of photographs' files."""
    pixels = np.stack([read_pil(io.BytesIO(file), trained.resize) for file in files])
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    return normalize_images(images, torch.zeros(len(images), dtype=torch.bool), trained.model.statistics)


@torch.no_grad()
def largest_difference(trained: TrainedNetwork, about: dict, run: Runner) -> dict[str, float]:
    """The largest difference of an artifact from its network, for `prediction` and for `score`, in batches of BATCHES.

    about, run: the description and the function that were read back from the artifact.
    Raises ExportError if a difference exceeds TOLERANCE.
    """
    files = sample_photographs()
    largest = {"prediction": 0.0, "score": 0.0}
    for count in BATCHES:
        expected = trained.model(evaluation_input(trained, files[:count]))
        inputs = np.concatenate([preprocess(about, file) for file in files[:count]])
        for name, ours, exported in zip(
            largest, (expected, trained.scores(expected)), run(inputs), strict=True
        ):
            if exported.shape != tuple(ours.shape) or not np.isfinite(exported).all():
                raise ExportError(
                    f"its {name} for {count} photographs is not {tuple(ours.shape)} finite numbers; nothing was written"
                )
            largest[name] = max(largest[name], float(np.abs(exported - ours.numpy()).max()))
    low, high = trained.scale
    for name, limit in {"score": TOLERANCE * (high - low), "prediction": TOLERANCE}.items():
        if not largest[name] <= limit:
            raise ExportError(
                f"its {name} differs from PyTorch's by {largest[name]:.2g}, more than {limit:g}; nothing was written"
            )
    return largest
