"""The description inside an export, one JSON: the network, the scale of its scores, the preprocessing of photographs."""

from __future__ import annotations

import io
from hashlib import sha256

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from iaa.networks.trained_network import TrainedNetwork
from iaa.photographs.decode import open_image

KEY = "about"  # of the JSON in an artifact's metadata; in a hub folder's config.json it is "eat"


class ScoringModule(nn.Module):
    """A trained network whose forward pass gives the scores, too."""

    def __init__(self, trained: TrainedNetwork):
        super().__init__()
        self.network, self.trained = trained.model, trained

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """images: (N, 3, H, W), normalised. Returns the raw prediction (N, outputs) and the scores (N,) on the dataset's scale."""
        prediction = self.network(images)
        return prediction, self.trained.scores(prediction)


def describe(trained: TrainedNetwork) -> dict:
    """Everything that another program needs to use the network. JSON values only."""
    (low, high), has_votes, resize = trained.scale, trained.outputs > 1, trained.resize
    mean, std = trained.model.statistics
    vote_shares = f"shares of the votes 1 to {trained.outputs}, raw: no softmax, and they need not sum to 1"
    return {
        "model": trained.name,
        "dataset": trained.dataset,
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
    with open_image(io.BytesIO(photograph)) as image:
        resized = image.convert("RGB").resize(size, Image.Resampling[steps["resize"]["method"].upper()])
    pixels = np.asarray(resized, np.float32) / steps["divide_by"]
    normalised = (pixels - np.float32(steps["mean"])) / np.float32(steps["std"])
    return np.ascontiguousarray(normalised.transpose(2, 0, 1)[None], steps["dtype"])


def compute_scores(about: dict, prediction: np.ndarray) -> np.ndarray:
    """Scores (N,) of a prediction (N, outputs), made by an artifact's description alone."""
    return prediction @ np.float32(about["score"]["weights"]) + np.float32(about["score"]["offset"])
