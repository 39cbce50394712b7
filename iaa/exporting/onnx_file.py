"""ONNX files, for any number of images at a time."""

from __future__ import annotations

import json
import logging
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from iaa.exporting.description import KEY, Runner
from iaa.networks.trained_network import TrainedNetwork
from iaa.runtime.files import to_json

# The first that has GELU as one operator; eat_tiny ran 1.07 times as fast as with 18 in ONNX Runtime.
OPSET = 20
OUTPUTS = ["prediction", "score"]


class ScoringModule(nn.Module):
    """A trained network whose forward pass gives the scores, too."""

    def __init__(self, trained: TrainedNetwork):
        super().__init__()
        self.network, self.trained = trained.model, trained

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """images: (N, 3, H, W), normalised. Returns raw predictions (N, outputs), and scores (N,) on the dataset's scale."""
        prediction = self.network(images)
        return prediction, self.trained.scores(prediction)


def write_onnx(trained: TrainedNetwork, path: Path, about: dict) -> None:
    """Write the network to `path`: `images` (N, 3, H, W) to `prediction` (N, outputs) and `score` (N,)."""
    size = trained.model.img_size
    logging.disable(logging.WARNING)  # the exporter's log and warnings say nothing about the network
    try:
        with warnings.catch_warnings(action="ignore"):
            program = torch.onnx.export(
                ScoringModule(trained).eval(),
                (torch.zeros(2, 3, size, size),),
                input_names=["images"],
                output_names=OUTPUTS,
                dynamic_shapes={"images": {0: torch.export.Dim("batch", min=1, max=2**31 - 1)}},
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
    finally:
        logging.disable(logging.NOTSET)
    model = program.model_proto
    for part in (model.graph, *model.functions):
        for node in part.node:  # the exporter notes where its code lies on this disk
            del node.metadata_props[:]
            node.doc_string = ""
    onnx.helper.set_model_props(model, {KEY: to_json(about | {"opset": OPSET}, indent=2)})
    onnx.checker.check_model(model)
    onnx.save(model, path)


def open_onnx(path: Path) -> tuple[dict, Runner]:
    """The file's description, and the file as a function in ONNX Runtime on the CPU."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return tuple(session.run(OUTPUTS, {"images": images}))

    return json.loads(session.get_modelmeta().custom_metadata_map[KEY]), run
