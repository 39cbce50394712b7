"""Scores from Python: one object that takes photographs in any form."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

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

    weights, dataset, model, score_range, interest_points: see `trained.load_trained`. `batch`, the released mode of the
    interest points, is refused: a score would depend on the other photographs of the call.
    device: by default the first GPU, else the CPU.
    as_loss: the score of a tensor has a gradient, and all scores are tensors. The higher the score, the better
        (`lower_better` is False), so minimise its negative.
    upright: turn photographs as EXIF says.
    batch_size: photographs that go through the network at once; with as_loss a tensor is not split.

    Calls do not change it, so threads may share it. score_range: the dataset's own scale (low, high).
    Raises InputError or WeightsError, both ValueErrors, where weights cannot be loaded or photographs cannot be read.
    """

    lower_better = False

    def __init__(
        self,
        weights: str | os.PathLike | Weights,
        device: str | torch.device | None = None,
        *,
        as_loss: bool = False,
        dataset: str | None = None,
        model: str | None = None,
        score_range: tuple[float, float] | None = None,
        interest_points: str | None = None,
        upright: bool = False,
        batch_size: int = 16,
    ):
        if interest_points == "batch":
            raise InputError(
                "Scorer: interest points of the batch would make scores depend on it; image or running"
            )
        self.trained = load_network(
            weights, interest_points=interest_points, dataset=dataset, model=model, scale=score_range
        )
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        try:
            self.trained.model.to(self.device)
        except (RuntimeError, AssertionError) as error:  # as without CUDA
            raise InputError(f"Scorer: no device {device} ({str(error).splitlines()[0][:160]})") from error
        self.as_loss, self.upright, self.batch_size = as_loss, upright, batch_size
        self.score_range = self.trained.scale
        self._mean, self._std = (
            torch.tensor(values, device=self.device).view(3, 1, 1) for values in self.trained.model.statistics
        )

    def __repr__(self) -> str:
        (low, high), of = self.score_range, f"{self.trained.name}, {self.trained.dataset}"
        return f"Scorer({of}, scores {low:g} to {high:g}, on {self.device})"

    def __call__(
        self, photographs: Photograph | Tensor | Sequence[Photograph | Tensor]
    ) -> float | np.ndarray | Tensor:
        """The score of one photograph, a float; of a list, (N,) float64; of a tensor (N, 3, H, W), a tensor (N,).

        A path; the bytes of a file; a PIL image; an array H x W, H x W x 1, 3 or 4, uint8 or floating point in [0, 1]; or
        a tensor 3 x H x W or N x 3 x H x W, floating point in [0, 1] or uint8. Raises InputError for anything else.
        """
        if isinstance(photographs, Tensor):
            scores = self._score_tensor(photographs)
            return scores if photographs.ndim == 4 or self.as_loss else scores.item()
        if isinstance(photographs, (list, tuple)):
            parts = [
                self._score_pixels(photographs[start : start + self.batch_size])
                for start in range(0, len(photographs), self.batch_size)
            ]
            scores = torch.cat(parts) if parts else torch.empty(0, device=self.device)
            return scores if self.as_loss else scores.double().cpu().numpy()
        scores = self._score_pixels([photographs])
        return scores if self.as_loss else scores.item()

    def each(self, photographs: Sequence[Photograph]) -> tuple[np.ndarray, list[str]]:
        """Scores (N,) float64 and errors of photographs, which must not be tensors. Without a score: NaN and the reason."""
        scores, errors = np.full(len(photographs), np.nan), [""] * len(photographs)
        for start in range(0, len(photographs), self.batch_size):
            squares = {}
            for row, photograph in enumerate(photographs[start : start + self.batch_size], start):
                try:
                    squares[row] = self._square(photograph)
                except InputError as error:
                    errors[row] = str(error)
            if squares:
                scores[list(squares)] = self._score_squares(squares.values()).cpu()
            for row in squares:
                if not np.isfinite(scores[row]):
                    scores[row], errors[row] = np.nan, NOT_FINITE
        return scores, errors

    def _score_pixels(self, photographs: Sequence[Photograph | Tensor]) -> Tensor:
        """Scores (N,) of a batch in any form. All but tensors are resized by PIL, as in evaluation."""
        if any(isinstance(photograph, Tensor) for photograph in photographs):
            if any(isinstance(item, Tensor) and item.ndim == 4 and len(item) != 1 for item in photographs):
                raise InputError("a list of tensors holds one photograph each, 3 x H x W")
            return torch.cat(
                [
                    self._score_tensor(item) if isinstance(item, Tensor) else self._score_pixels([item])
                    for item in photographs
                ]
            )
        scores = self._score_squares(map(self._square, photographs))
        return scores.float() if self.as_loss else scores

    def _score_squares(self, squares: Iterable[np.ndarray]) -> Tensor:
        """Scores (N,) float64 of pixels (side, side, 3) uint8, by the arithmetic of predict.py."""
        images = torch.from_numpy(np.stack(list(squares))).permute(0, 3, 1, 2)
        with torch.inference_mode():
            model = self.trained.model
            outputs = model(unmirrored_input(images, model, self.device))
        return self.trained.scores(outputs.double())

    def _square(self, photograph: Photograph) -> np.ndarray:
        """The pixels (side, side, 3) uint8 of a photograph, resized by PIL, as in evaluation."""
        return np.asarray(self.trained.resize.pil(self._picture(photograph)))

    def _picture(self, photograph: Photograph) -> Image.Image:
        try:
            if isinstance(photograph, Image.Image):
                return to_rgb(photograph, self.upright)
            if isinstance(photograph, np.ndarray):
                return Image.fromarray(_as_bytes(photograph)).convert("RGB")
            if isinstance(photograph, bytes):
                return open_rgb(photograph, self.upright)
            return open_rgb(os.fspath(photograph), self.upright)
        except InputError:
            raise
        except Exception as error:  # decoders raise anything at all on a damaged file
            if isinstance(photograph, Image.Image):
                reason = f"a PIL image in mode {photograph.mode}: {' '.join(str(error).split())}"
            elif isinstance(photograph, bytes):
                reason = explain_failure(photograph, error)
            elif isinstance(photograph, (str, os.PathLike)):
                reason = f"{Path(photograph)}: {explain_failure(os.fspath(photograph), error)}"
            else:
                kind = type(photograph).__name__
                reason = f"{kind} is no photograph; give a path, bytes, a PIL image, an array, a tensor or a list of these"
            raise InputError(reason) from error

    def _score_tensor(self, images: Tensor) -> Tensor:
        """Scores (N,) of a tensor (N, 3, H, W) or (3, H, W)."""
        images = images[None] if images.ndim == 3 else images
        if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape[2:]:
            raise InputError(f"a tensor of {tuple(images.shape)}; photographs are N x 3 x H x W")
        if images.dtype == torch.uint8:
            images = images.float() / 255
        elif not images.is_floating_point():
            raise InputError(f"a tensor of {images.dtype}; {PIXEL_VALUES}")
        elif not self.as_loss and images.numel():
            _refuse_other_values(*(value.item() for value in images.aminmax()), "a tensor")
        if not len(images):
            return torch.empty(0, device=self.device)
        if self.as_loss:
            return self.trained.scores(self.trained.model(self._prepare(images)))
        with torch.inference_mode():
            outputs = [self.trained.model(self._prepare(part)) for part in images.split(self.batch_size)]
            return self.trained.scores(torch.cat(outputs))

    def _prepare(self, images: Tensor) -> Tensor:
        """The network's input, from pixels in [0, 1]: resized as PIL does it, but without rounding to 8 bits."""
        resize = self.trained.resize
        images = images.to(self.device, torch.float32)
        fits = images.shape[-2:] == (resize.side, resize.side)
        if not fits:
            images = F.interpolate(images, (resize.side, resize.side), mode=resize.method, antialias=True)
        if not (fits and self.as_loss):  # bicubic interpolation overshoots; PIL clamps, too
            images = images.clamp(0, 1)
        return (images - self._mean) / self._std


def _refuse_other_values(low: float, high: float, source: str) -> None:
    """Raises InputError for values beyond [0, 1]; a resize may overshoot by a hundredth."""
    if not (low >= -0.01 and high <= 1.01):
        raise InputError(f"{source} with values from {low:.6g} to {high:.6g}; {PIXEL_VALUES}")


def _as_bytes(array: np.ndarray) -> np.ndarray:
    """The array as (H, W) or (H, W, 3 or 4) uint8. Raises InputError for any other shape or type."""
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.ndim not in (2, 3) or array.shape[2:] not in ((), (3,), (4,)) or 0 in array.shape:
        raise InputError(f"an array of {array.shape}; photographs are H x W, or H x W x 3")
    if np.issubdtype(array.dtype, np.floating):
        _refuse_other_values(array.min(), array.max(), "an array")
        return (array.clip(0, 1) * 255).round().astype(np.uint8)
    if array.dtype != np.uint8:
        raise InputError(f"an array of {array.dtype}; {PIXEL_VALUES}")
    return np.ascontiguousarray(array)
