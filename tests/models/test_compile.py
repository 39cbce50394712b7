"""`EAT.compile`: each kind of block once, forward and backward, by backends that need no C++ compiler."""

import pytest
import torch
from torch._dynamo.utils import counters

import models

# Six blocks of four kinds.
BLOCKS = {
    "depths": (2, 1, 2, 1),
    "stage_spec": (("L", "L"), ("S",), ("D", "D"), ("L",)),
    "groups": (-1, -1, 1, -1),
}


@pytest.fixture(autouse=True)
def _nothing_is_compiled(monkeypatch):
    monkeypatch.setattr("einops._backends._type2backend", {}, raising=False)  # as in a fresh process
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def count_graphs():
    assert not counters["graph_break"]
    return counters["stats"]["unique_graphs"]


@pytest.mark.slow
def test_the_24_blocks_of_eat_base_are_eight_graphs():
    with torch.device("meta"):
        model, images = models.create_model("eat_base").train(), torch.empty(2, 3, 224, 224)
        model.compile(backend="eager")
        model(images)
        assert count_graphs() == 8
        with torch.compiler.set_stance("fail_on_recompile"):
            model(images)


@pytest.mark.slow
def test_trains_and_evaluates_as_the_plain_network_without_compiling_again(golden_images):
    """Trained in float32 with blocks that run twice, evaluated in bf16."""
    settings = BLOCKS | {"refinement": "scheduled", "drop_path_rate": 0.3}
    compiled, plain = networks = [models.create_model("eat_test", **settings).train() for _ in range(2)]
    compiled.load_state_dict(plain.state_dict())
    compiled.compile(backend="aot_eager")
    for network in networks:
        network.set_grad_checkpointing(True)

    def compare(seed, tolerance=1e-5):
        outputs = []
        for network in networks:
            models.set_refinement(network, (0.25 * seed, 1.0))
            torch.manual_seed(seed)
            outputs.append(network(golden_images))
        torch.testing.assert_close(*outputs, atol=tolerance, rtol=0)
        return outputs

    def train(seed):
        for output in compare(seed):
            output.square().sum().backward()

    train(1)
    assert count_graphs() == 4
    with torch.compiler.set_stance("fail_on_recompile"):
        train(2)
    for name, parameter in plain.named_parameters():
        gradient = compiled.get_parameter(name).grad
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-3, atol=1e-4)
    for name, value in plain.named_buffers():
        torch.testing.assert_close(compiled.get_buffer(name), value)
    for network in networks:
        network.eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        compare(3, tolerance=0.01)
        assert count_graphs() == 8
        with torch.compiler.set_stance("fail_on_recompile"):
            compare(4, tolerance=0.01)
