"""Scores from Python: one object that takes photographs in any form."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from iaa.errors import InputError
from iaa.networks.trained_network import load_network
from iaa.scoring.photos import explain_failure, open_rgb, to_rgb
from iaa.scoring.rows import NOT_FINITE, unmirrored_input
from models import Weights

PIXEL_VALUES = "photographs are floating point in [0, 1], or uint8"
Photograph = str | os.PathLike | bytes | Image.Image | np.ndarray


class Scorer:
    """A trained network that scores photographs; the higher, the better.

        scorer = Scorer("best.pth")
        scorer("photo.jpg")          # 5.31
        scorer(["a.jpg", "b.jpg"])   # array([5.31, 4.87])
        scorer(images)               # N x 3 x H x W in [0, 1]: tensor of N scores
        scorer.each(["a.jpg", "x"])  # array([5.31, nan]), ["", "x: there is no such file"]

    weights: a file, a run's folder, `hf-hub:OWNER/NAME`, or a network of the folder `weights/`: `biq2021`. Lines about its
    scores are in `trained.notes`.
    dataset, model, score_range, interest_points: see `load_network`. `batch`, the released mode of the
    interest points, is refused: a score would depend on the other photographs of the call.
    device: by default the first GPU, else the CPU.
    upright: turn photographs as EXIF says.
    batch_size: photographs that go through the network at once.

    Calls do not change it, so threads may share it. score_range: the dataset's own scale (low, high).
    Raises InputError or WeightsError, both ValueErrors, where weights cannot be loaded or photographs cannot be read.
    """

    def __init__(
        self,
        weights: str | os.PathLike | Weights,
        device: str | torch.device | None = None,
        *,
        dataset: str | None = None,
        model: str | None = None,
        score_range: tuple[float, float] | None = None,
        interest_points: str | None = None,
        upright: bool = False,
        batch_size: int = 16,
    ):
        if interest_points == "batch":
            raise InputError("Scorer: with points of the batch, scores would depend on it; choose image")
        self.trained = load_network(
            weights, interest_points=interest_points, dataset=dataset, model=model, scale=score_range
        )
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.trained.model.to(self.device)
        self.upright, self.batch_size = upright, batch_size
        self.score_range = self.trained.scale

    def __call__(
        self, photographs: Photograph | Tensor | Sequence[Photograph]
    ) -> float | np.ndarray | Tensor:
        """The score of one photograph, a float; of a list, (N,) float64; of a tensor (N, 3, H, W), a tensor (N,).

        A path; the bytes of a file; a PIL image; an array H x W, H x W x 3 or 4; or a tensor, not in a list. Arrays and
        tensors are uint8, or floating point in [0, 1]. Raises InputError for anything else, and for a photograph without a
        score.
        """
        if isinstance(photographs, Tensor):
            return self._score_tensor(photographs)
        is_list = isinstance(photographs, (list, tuple))
        scores, errors = self.each(photographs if is_list else [photographs])
        for error in filter(None, errors):
            raise InputError(error)
        return scores if is_list else scores.item()

    def each(self, photographs: Sequence[Photograph]) -> tuple[np.ndarray, list[str]]:
        """Scores (N,) float64 and errors of photographs, which must not be tensors. Without a score: NaN and the reason."""
        scores, errors = np.full(len(photographs), np.nan), [""] * len(photographs)
        for start in range(0, len(photographs), self.batch_size):
            squares = {}
            for row, photograph in enumerate(photographs[start : start + self.batch_size], start):
                try:
                    picture = to_picture(photograph, self.upright)
                    squares[row] = np.asarray(self.trained.resize.pil(picture))
                except InputError as error:
                    errors[row] = str(error)
            if squares:
                images = torch.from_numpy(np.stack(list(squares.values()))).permute(0, 3, 1, 2)
                with torch.inference_mode():  # the arithmetic of predict.py
                    outputs = self.trained.model(unmirrored_input(images, self.trained.model, self.device))
                    scores[list(squares)] = self.trained.scores(outputs.double()).cpu().numpy()
        for row in np.flatnonzero(~np.isfinite(scores)):
            scores[row], errors[row] = np.nan, errors[row] or NOT_FINITE
        return scores, errors

    def _score_tensor(self, images: Tensor) -> Tensor:
        """Scores (N,) of (N, 3, H, W), resized as PIL does it, but without rounding to 8 bits."""
        if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape:
            raise InputError(f"a tensor of {tuple(images.shape)}; photographs are N x 3 x H x W")
        if images.dtype == torch.uint8:
            images = images.float() / 255
        if not images.is_floating_point():
            raise InputError(f"a tensor of {images.dtype}; {PIXEL_VALUES}")
        _refuse_other_values(*(value.item() for value in images.aminmax()))
        resize, model = self.trained.resize, self.trained.model
        size, outputs = (resize.side, resize.side), []
        mean, std = (torch.tensor(values, device=self.device).view(3, 1, 1) for values in model.statistics)
        with torch.inference_mode():
            for part in images.split(self.batch_size):
                part = part.to(self.device, torch.float32)
                if part.shape[2:] != size:
                    part = F.interpolate(part, size, mode=resize.method, antialias=True)
                outputs.append(model((part.clamp(0, 1) - mean) / std))  # bicubic interpolation overshoots
            return self.trained.scores(torch.cat(outputs))


def to_picture(photograph: Photograph, upright: bool = False) -> Image.Image:
    """A photograph in any form but a tensor as an RGB image. Raises InputError if it is none."""
    if isinstance(photograph, Tensor):
        remedy = "call the scorer with one tensor N x 3 x H x W, or list arrays H x W x 3"
        raise InputError(f"a tensor in a list; {remedy}")
    try:
        if isinstance(photograph, np.ndarray):
            photograph = Image.fromarray(_as_uint8(photograph))
        if isinstance(photograph, Image.Image):
            return to_rgb(photograph, upright)
        return open_rgb(photograph if isinstance(photograph, bytes) else os.fspath(photograph), upright)
    except InputError:
        raise
    except Exception as error:  # decoders raise anything at all on a damaged file
        name = "" if isinstance(photograph, bytes) else f"{str(photograph)[:400]}: "
        raise InputError(f"{name}{explain_failure(photograph, error)}") from error


def _refuse_other_values(low: float, high: float) -> None:
    """Raises InputError for values beyond [0, 1]; a resize may overshoot by a hundredth."""
    if not (low >= -0.01 and high <= 1.01):
        raise InputError(f"values from {low:.6g} to {high:.6g}; {PIXEL_VALUES}")


def _as_uint8(array: np.ndarray) -> np.ndarray:
    """The array as (H, W) or (H, W, 3 or 4) uint8. Raises InputError for any other shape or type."""
    if array.shape[2:] not in ((), (3,), (4,)) or array.ndim < 2 or 0 in array.shape:
        raise InputError(f"an array of {array.shape}; photographs are H x W, or H x W x 3")
    if np.issubdtype(array.dtype, np.floating):
        _refuse_other_values(array.min(), array.max())
        array = (array.clip(0, 1) * 255).round().astype(np.uint8)
    if array.dtype != np.uint8:
        raise InputError(f"an array of {array.dtype}; {PIXEL_VALUES}")
    return array
