"""ONNX: a file with a dynamic batch, with `GridSample` or without, in float32 or int8."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from commands.files import to_json
from exporting.about import KEY, Scorer
from exporting.check import ExportError, Runner
from inference.trained import Trained
from models.attention import set_sampling

OPSETS = (18, 23)  # from the first that PyTorch's exporter writes
OPSET = 20  # has GELU as one operator; eat_tiny ran 1.07 times as fast as with 18 in ONNX Runtime


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


def write_onnx(trained: Trained, path: Path, about: dict, gather: bool, int8: bool, opset: int) -> None:
    """Write the network to `path`: `images` (N, 3, H, W) to `prediction` (N, outputs) and `score` (N,).

    gather: bilinear sampling without `GridSample`. int8: its linear layers' weights, the activations quantised as they
    come (dynamic quantisation), which needs no photographs to calibrate on.
    """
    import onnx

    _convert(trained, gather, opset).save(path, external_data=False)
    if int8:
        quantize(path)
    graph = onnx.load(path)
    _name_batch(graph)
    _forget_origin(graph)
    versions = {entry.domain: entry.version for entry in graph.opset_import}
    about = about | {"gather": gather, "int8": int8, "opset": versions[""]}
    # Dynamic quantisation takes the range of each activation over the whole batch.
    about["depends_on_batch"] = about["depends_on_batch"] or int8
    onnx.helper.set_model_props(graph, {KEY: to_json(about, indent=2)})
    onnx.checker.check_model(graph)
    onnx.save(graph, path)


def _convert(trained: Trained, gather: bool, opset: int) -> torch.onnx.ONNXProgram:
    set_sampling(trained.model, "gather" if gather else "grid_sample")
    try:
        program = trace(trained)
    finally:
        set_sampling(trained.model, "grid_sample")
    names = {"input_names": ["images"], "output_names": ["prediction", "score"]}
    return torch.onnx.export(program, **names, opset_version=opset, dynamo=True, verbose=False)


def quantize(path: Path) -> None:
    """Replace a float32 ONNX file by its int8 form.

    On the demo static quantisation, calibrated on its photographs, was not faster and not nearer (docs/exports.md).
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    ready = path.with_name(f"{path.name}.ready")
    quant_pre_process(path, ready, skip_symbolic_shape=True)
    model = onnx.load(ready)
    graph = model.graph
    del graph.value_info[:]  # some exporters' shapes are those from before a weight was transposed
    vectors = {weight.name for weight in graph.initializer if len(weight.dims) == 1}
    quantize_dynamic(
        model,
        path,
        op_types_to_quantize=["MatMul", "Gemm"],
        per_channel=True,
        weight_type=QuantType.QInt8,
        # The sum that makes the score of a prediction is no layer, and ONNX Runtime quantises matrices only.
        nodes_to_exclude=[
            node.name for node in graph.node if node.op_type == "MatMul" and vectors & set(node.input)
        ],
    )
    ready.unlink()


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
        raise ExportError(
            f"ONNX Runtime does not run it ({reason}); nothing was written; try another --opset"
        ) from error
