"""ONNX: a file with a dynamic batch, with `GridSample` or without."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import torch

from commands.files import to_json
from exporting.about import KEY, Scorer
from exporting.check import ExportError, Runner
from inference.trained import Trained

OPSET = (
    20  # the first that has GELU as one operator; eat_tiny ran 1.07 times as fast as with 18 in ONNX Runtime
)


def trace(trained: Trained) -> torch.export.ExportedProgram:
    """The network and its score as one graph, for any number of images."""
    size = trained.model.img_size
    example = torch.zeros(2, 3, size, size)
    return torch.export.export(
        Scorer(trained).eval(),
        (example,),
        dynamic_shapes={"images": {0: torch.export.Dim("batch", min=1, max=2**31 - 1)}},
        strict=False,
    )


def write_onnx(trained: Trained, path: Path, about: dict, gather: bool) -> None:
    """Write the network to `path`: `images` (N, 3, H, W) to `prediction` (N, outputs) and `score` (N,).

    gather: bilinear sampling without `GridSample`.
    """
    import onnx

    _convert(trained, gather).save(path, external_data=False)
    graph = onnx.load(path)
    _name_batch(graph)
    _forget_origin(graph)
    about = about | {"gather": gather, "opset": OPSET}
    onnx.helper.set_model_props(graph, {KEY: to_json(about, indent=2)})
    onnx.checker.check_model(graph)
    onnx.save(graph, path)


def _convert(trained: Trained, gather: bool) -> torch.onnx.ONNXProgram:
    from models.sampling import gathers

    with gathers() if gather else nullcontext():
        program = trace(trained)
    names = {"input_names": ["images"], "output_names": ["prediction", "score"]}
    return torch.onnx.export(program, **names, opset_version=OPSET, dynamo=True, verbose=False)


def _name_batch(graph) -> None:
    """The exporter gives the dynamic dimension a number; people read `batch`."""
    symbol = graph.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    for value in (*graph.graph.input, *graph.graph.output, *graph.graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param and dim.dim_param == symbol:
                dim.dim_param = "batch"


def _forget_origin(graph) -> None:
    """Leave out where the exporter's code lay on its disk, and the domains of operators that no node uses."""
    for part in (graph.graph, *graph.functions):
        for node in part.node:
            del node.metadata_props[:]
            node.doc_string = ""
    used = {node.domain for part in (graph.graph, *graph.functions) for node in part.node} | {""}
    kept = [entry for entry in graph.opset_import if entry.domain in used]
    del graph.opset_import[:]
    graph.opset_import.extend(kept)


def open_onnx(path: Path) -> tuple[dict, Runner]:
    """What the file says of itself, and the file in ONNX Runtime on the CPU. Raises ExportError where that fails."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 4  # its errors are raised, too
    with _told():
        session = onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])

    def run(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        with _told():
            return tuple(session.run(["prediction", "score"], {"images": images}))

    return json.loads(session.get_modelmeta().custom_metadata_map[KEY]), run


@contextmanager
def _told() -> Iterator[None]:
    """ONNX Runtime's errors, which have kinds of their own, as an ExportError."""
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise ExportError(f"ONNX Runtime does not run it ({reason}); nothing was written") from error
