"""Training steps and evaluation as CUDA graphs, by a stand-in on the CPU: the same weights and scores as without."""

import logging
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import pytest
import torch
from helpers.data import arguments
from helpers.runs import metrics, table, weights
from helpers.stand_in_graph import StandInGraph

from iaa.errors import InputError
from iaa.training import build, cuda_graph
from iaa.training.cuda_graph import WARM_UP, CudaGraph, graph_forward
from iaa.training.steps import Precision
from models import create_model

CPU = torch.device("cpu")
# 54 steps: in each of 9 epochs five batches of 2 images, and one of a single image.
RECIPE = {
    "num_epoch": 9, "batch_size": 2, "limit": 11, "eval_batch_size": 1, "init_lr": 1e-3, "optimizer": "adamw",
    "clip_grad": 1.0, "drop_path_rate": 0.3, "schedule": "cosine", "refinement": "scheduled", "ema_decay": 0.9,
}  # fmt: skip


@contextmanager
def stand_in_graphs(capture=StandInGraph):
    """A context in which runs are captured by stand-ins, as on a GPU. Gives the list of the captures that succeeded."""
    graphs, networks, make_model = [], [], build.make_model

    def remember(*given):
        networks.append(make_model(*given))
        return networks[-1]

    def captured(work, stream):
        graphs.append(capture(work, networks[-1]))
        return graphs[-1], graphs[-1].output

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "make_model", remember)
        patch.setattr(build, "pick_cuda_graphs", lambda *_: (True, True))
        patch.setattr(cuda_graph, "capture", captured)
        yield graphs


def assert_same_run(result, expected):
    assert metrics(result) == metrics(expected)
    folders = [Path(one["folder"]) for one in (result, expected)]
    states = [weights(folder) for folder in folders]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    pd.testing.assert_frame_equal(table(folders[0]), table(folders[1]), check_exact=True)


@pytest.mark.slow
@pytest.mark.parametrize("amp", ["off", "fp16"])
def test_weights_after_50_steps_are_those_without_a_graph(ava, run, trained, amp):
    """With drop path, a scaler in fp16, and a smaller batch at each epoch's end."""
    expected = trained(**RECIPE, amp=amp)
    with stand_in_graphs() as graphs:
        status, result, err = run(arguments(ava, **RECIPE, amp=amp))
    assert status == 0, err
    # Of the training and of the validation of each epoch, and of the test.
    assert [graph.replays for graph in graphs] == [5 - WARM_UP, 6 - WARM_UP] * 9 + [6 - WARM_UP]
    assert_same_run(result, expected)


def test_a_step_that_cannot_be_captured_goes_on_without_and_says_so(ava, run, trained, caplog):
    def refuse(work, model):
        work()
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB")

    given = RECIPE | {"num_epoch": 2, "drop_path_rate": 0, "interest_points": "image"}
    expected = trained(**given)
    with stand_in_graphs(refuse):
        status, result, err = run(arguments(ava, **given))
    assert status == 0, err
    assert caplog.text.count("warning: it goes on without a CUDA graph: CUDA out of memory.\n") == 4
    assert_same_run(result, expected)


def test_a_graph_is_for_one_shape_and_its_results_are_kept(monkeypatch):
    model = create_model("eat_test", interest_points="image").eval()
    graphs = []

    def capture(work, stream):
        graphs.append(StandInGraph(work, model))
        return graphs[-1], graphs[-1].output

    monkeypatch.setattr(cuda_graph, "capture", capture)
    forward = graph_forward(model, Precision(CPU), True)
    with torch.inference_mode():
        batches = [torch.randn(size, 3, 224, 224) for size in [2] * (WARM_UP + 2) + [1] * (WARM_UP + 1) + [2]]
        found = [forward(images) for images in batches]
        expected = [model(images) for images in batches]
    assert [graph.replays for graph in graphs] == [2, 1]
    assert all(map(torch.equal, found, expected))
    assert forward.graph is None


def test_without_a_graph_the_function_is_called():
    assert CudaGraph(lambda a, b: a + b, enabled=False)(1, 2) == 3


@pytest.mark.parametrize(
    ("given", "device", "processes", "expected"),
    [
        ({}, "cpu", 1, (False, False)),
        ({}, "cuda:0", 1, (True, True)),
        ({"choice": "on"}, "cuda:0", 1, (True, True)),
        ({"choice": "off"}, "cuda:0", 1, (False, False)),
        ({}, "cuda:0", 2, "training steps are no CUDA graphs: there are several processes"),
        ({"accumulate": 4}, "cuda:0", 1, "training steps are no CUDA graphs: --accumulate is 4"),
        (
            {"grad_checkpoint": True},
            "cuda:0",
            1,
            "training steps are no CUDA graphs: --grad_checkpoint is given",
        ),
    ],
)
def test_graphs_are_taken_on_a_gpu_where_they_can_be(caplog, monkeypatch, given, device, processes, expected):
    caplog.set_level(logging.INFO)
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    given = {"choice": "auto", "trains": True, "accumulate": 1, "grad_checkpoint": False} | given
    given["device"] = torch.device(device)
    found = build.pick_cuda_graphs(**given)
    if isinstance(expected, tuple):
        assert (found, caplog.text) == (expected, "")
        return
    assert found == (False, True)
    assert expected in caplog.text
    with pytest.raises(InputError, match=f"--cuda_graph on: {expected.partition(': ')[2]}; leave it out"):
        build.pick_cuda_graphs(**given | {"choice": "on"})
