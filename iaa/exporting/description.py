"""The description inside an export, one JSON, and the proof that an artifact that is fed by it equals its network."""

from __future__ import annotations

import io
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from iaa.errors import TrainingError
from iaa.networks.trained_network import TrainedNetwork
from iaa.photographs.decode import open_image, read_pil
from iaa.scoring.rows import unmirrored_input

KEY = "about"  # of the JSON in an artifact's metadata; in a hub folder's config.json it is "eat"
BATCHES = (1, 2, 5)
TOLERANCE = 1e-4  # of the prediction; of the score, as a share of its scale

# An artifact as a function: images (N, 3, H, W) float32 to predictions (N, outputs) and scores (N,).
Runner = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


def sample_photographs() -> list[bytes]:
    """The bytes of five files: the two photographs of scikit-learn, and three crops of them."""
    files = [Path(name).read_bytes() for name in load_sample_images().filenames]
    for number, box in ((0, (0, 0, 320, 427)), (1, (160, 40, 560, 400)), (0, (250, 90, 610, 330))):
        with open_image(files[number]) as image, io.BytesIO() as crop:
            image.crop(box).save(crop, "PNG")
            files.append(crop.getvalue())
    return files


def evaluation_input(trained: TrainedNetwork, files: list[bytes]) -> torch.Tensor:
    """The input (N, 3, H, W) that evaluation makes of photographs' files."""
    pixels = np.stack([read_pil(io.BytesIO(file), trained.resize) for file in files])
    return unmirrored_input(torch.from_numpy(pixels).permute(0, 3, 1, 2), trained.model, torch.device("cpu"))


@torch.no_grad()
def largest_difference(trained: TrainedNetwork, about: dict, run: Runner) -> dict[str, float]:
    """The largest difference of an artifact from its network, for `prediction` and for `score`, in batches of BATCHES.

    about, run: the description and the function that were read back from the artifact.
    Raises TrainingError if a difference exceeds TOLERANCE.
    """
    files, (low, high) = sample_photographs(), trained.scale
    largest = {"prediction": 0.0, "score": 0.0}
    for count in BATCHES:
        prediction = trained.model(evaluation_input(trained, files[:count]))
        outputs = run(np.concatenate([preprocess(about, file) for file in files[:count]]))
        expected = prediction, trained.scores(prediction)
        for name, ours, theirs in zip(largest, expected, outputs, strict=True):
            largest[name] = float(np.maximum(largest[name], np.abs(theirs - ours.numpy()).max()))
    for name, limit in {"score": TOLERANCE * (high - low), "prediction": TOLERANCE}.items():
        if not largest[name] <= limit:  # nan, too
            difference = f"differs from PyTorch's by {largest[name]:.2g}, more than {limit:g}"
            raise TrainingError(f"its {name} {difference}; nothing was written")
    return largest


def describe(trained: TrainedNetwork) -> dict:
    """Everything that another program needs to use the network. JSON values only."""
    (low, high), has_votes, resize = trained.scale, trained.outputs > 1, trained.resize
    mean, std = trained.model.statistics
    vote_shares = f"shares of the votes 1 to {trained.outputs}, raw: no softmax, and they need not sum to 1"
    return {
        "model": trained.name,
        "dataset": trained.dataset,
        "note": trained.model.purpose.note,
        "score_range": [low, high],
        "interest_points": trained.points,
        "refinement": trained.model.purpose.settings.get("refinement"),
        "depends_on_batch": trained.points == "batch",
        "prediction": {
            "outputs": trained.outputs,
            "meaning": vote_shares if has_votes else "the score from 0 to 1, raw",
        },
        "score": {
            "formula": "sum over outputs of weights * prediction, plus offset; may lie outside score_range",
            "weights": [float(level + 1) for level in range(trained.outputs)] if has_votes else [high - low],
            "offset": 0.0 if has_votes else low,
        },
        "preprocessing": {
            "decode": "8-bit RGB; the pixels as stored, no EXIF orientation and no colour profile applied",
            "resize": {
                "height": resize.side,
                "width": resize.side,
                "method": resize.method,
                "antialias": True,
                "keep_aspect_ratio": False,
                "as": f"PIL.Image.resize(({resize.side}, {resize.side}), {resize.method.upper()})",
            },
            "divide_by": 255.0,
            "mean": list(mean),
            "std": list(std),
            "layout": "NCHW",
            "dtype": "float32",
        },
        "weights": {"file": trained.path.name, "sha256": sha256(trained.path.read_bytes()).hexdigest()},
        "torch": torch.__version__,
    }


def preprocess(about: dict, photograph: bytes) -> np.ndarray:
    """The input (1, 3, H, W) for the bytes of a photograph's file, made by an artifact's description alone."""
    steps = about["preprocessing"]
    size = (steps["resize"]["width"], steps["resize"]["height"])
    with open_image(photograph) as image:
        resized = image.convert("RGB").resize(size, Image.Resampling[steps["resize"]["method"].upper()])
    pixels = np.asarray(resized, np.float32) / steps["divide_by"]
    normalised = (pixels - np.float32(steps["mean"])) / np.float32(steps["std"])
    return np.ascontiguousarray(normalised.transpose(2, 0, 1)[None], steps["dtype"])


def compute_scores(about: dict, prediction: np.ndarray) -> np.ndarray:
    """Scores (N,) of a prediction (N, outputs), made by an artifact's description alone."""
    return prediction @ np.float32(about["score"]["weights"]) + np.float32(about["score"]["offset"])
