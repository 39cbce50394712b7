"""ONNX files, for any number of images at a time."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import nn

from iaa.exporting.check import Runner
from iaa.exporting.description import KEY, ScoringModule
from iaa.exporting.output import ExportError
from iaa.networks.trained_network import TrainedNetwork
from iaa.runtime.files import to_json
from models.attention import set_sampling

OPSET = (
    20  # the first that has GELU as one operator; eat_tiny ran 1.07 times as fast as with 18 in ONNX Runtime
)


def write_onnx(trained: TrainedNetwork, path: Path, about: dict, gather: bool) -> None:
    """Write the network to `path`: `images` (N, 3, H, W) to `prediction` (N, outputs) and `score` (N,).

    gather: bilinear sampling as lookups, products and sums, without the operator `GridSample`.
    """
    import onnx

    size = trained.model.img_size
    with _sampling(trained.model, "gather" if gather else "grid_sample"), _quiet():
        program = torch.onnx.export(
            ScoringModule(trained).eval(),
            (torch.zeros(2, 3, size, size),),
            input_names=["images"],
            output_names=["prediction", "score"],
            dynamic_shapes={"images": {0: torch.export.Dim("batch", min=1, max=2**31 - 1)}},
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    program.save(path, external_data=False)
    model = onnx.load(path)
    for part in (model.graph, *model.functions):
        for node in part.node:  # the exporter notes where its code lies on this disk
            del node.metadata_props[:]
            node.doc_string = ""
    about = about | {"gather": gather, "opset": OPSET}
    onnx.helper.set_model_props(model, {KEY: to_json(about, indent=2)})
    onnx.checker.check_model(model)
    onnx.save(model, path)


def open_onnx(path: Path) -> tuple[dict, Runner]:
    """The file's description, and the file as a function in ONNX Runtime on the CPU. Raises ExportError if that fails."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 4  # its errors are raised, too
    with _runtime_errors():
        session = onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])

    def run(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        with _runtime_errors():
            return tuple(session.run(["prediction", "score"], {"images": images}))

    return json.loads(session.get_modelmeta().custom_metadata_map[KEY]), run


@contextmanager
def _sampling(model: nn.Module, method: str) -> Iterator[None]:
    """The deformable layers sample by this method while a graph is made."""
    set_sampling(model, method)
    try:
        yield
    finally:
        set_sampling(model, "grid_sample")


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's warnings and its log of simplifications, which say nothing about this network."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(level)


@contextmanager
def _runtime_errors() -> Iterator[None]:
    """Turn ONNX Runtime's errors, which have classes of their own, into ExportError."""
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise ExportError(f"ONNX Runtime does not run it ({reason}); nothing was written") from error
