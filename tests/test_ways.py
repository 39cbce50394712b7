"""Every way of computing attention gives the network of the golden numbers; the fastest that does so is found by measuring."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from common import arguments, make_toy

from models import attention, ways
from option import InputError
from training import attention as run_attention
from training.steps import Precision
from util import emd_loss


def dense(model):
    for name, group in ways.layers(model).items():
        for layer in group:
            layer.way = "dense" if name.startswith("D") else "explicit"
    return model


def test_dense_network_has_the_golden_predictions_and_gradients(toy, golden, golden_images):
    dense(toy)
    with torch.no_grad():
        torch.testing.assert_close(toy(golden_images), golden["eval/prediction"], rtol=0, atol=1e-5)
    plain = make_toy().train()
    plain.load_state_dict(toy.state_dict())
    for model in (toy.train(), plain):
        emd_loss(model(golden_images), golden["input/target"]).backward()
    for name, parameter in toy.named_parameters():
        expected = plain.get_parameter(name).grad
        assert (parameter.grad - expected).norm() <= 1e-4 * expected.norm() + 1e-7, name


def test_kinds_of_layers_and_what_they_are_set_to(toy):
    assert {name[0] for name in ways.layers(toy)} == set("LSD")
    ways.set_ways(toy, "dense")
    assert {way for name, way in ways.ways_of(toy).items() if name[0] == "D"} == {"dense"}
    assert {way for name, way in ways.ways_of(toy).items() if name[0] != "D"} == {"fused"}
    again = make_toy()
    ways.set_ways(again, ways.ways_of(toy))
    assert ways.ways_of(again) == ways.ways_of(toy)
    with pytest.raises(ValueError, match="X 3 channels"):
        ways.set_ways(toy, {"X 3 channels": "dense"})
    with pytest.raises(ValueError, match="no deformable layers"):
        ways.set_ways(torch.nn.Linear(2, 2), "dense")


@pytest.mark.slow
def test_measuring_leaves_the_network_as_it_was(golden_images):
    model = make_toy(interest_points="running", refinement="off").train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()
    times = ways.measure(model, golden_images, nullcontext, ways.EXACT, warn=pytest.fail)
    assert set(times) == set(ways.layers(model))
    assert all(milliseconds > 0 for found in times.values() for milliseconds in found.values())
    assert {way for name, found in times.items() if name[0] == "D" for way in found} == {"sampled", "dense"}
    assert torch.equal(torch.get_rng_state(), random)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0, equal_nan=True)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert set(ways.ways_of(model).values()) == {"fused", "sampled"}


def test_a_way_that_differs_or_fails_is_left_out_with_one_warning(toy, golden_images, monkeypatch):
    explicit = attention.explicit_attention
    monkeypatch.setattr(attention, "explicit_attention", lambda *args: 1.001 * explicit(*args))

    def broken(*_):
        raise RuntimeError("no such\nkernel")

    monkeypatch.setattr("models.sampling._dense_features", broken)
    warnings = []
    times = ways.measure(toy, golden_images, nullcontext, ways.EXACT, train=False, warn=warnings.append)
    kinds = ways.layers(toy)
    assert all(set(found) == ({"sampled"} if name[0] == "D" else {"fused"}) for name, found in times.items())
    assert len(warnings) == len(kinds)
    assert all("\n" not in line for line in warnings)
    assert any("differs by" in line for line in warnings)
    assert any("RuntimeError: no such kernel" in line for line in warnings)


def test_the_fastest_is_chosen():
    assert ways.fastest({"L": {"fused": 2.0, "explicit": 1.0}, "D": {}}) == {"L": "explicit"}


@pytest.fixture
def options():
    """On what stands for a GPU, and measures on the CPU."""
    return SimpleNamespace(
        attention="auto", deterministic=False, released_protocol=False, tf32=False, compile=False
    )


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.setattr(Precision, "__call__", lambda self: nullcontext())
    return Precision(torch.device("cuda"))


def test_a_run_takes_the_fastest_ways_and_says_so_in_one_line(
    toy, golden_images, options, gpu, monkeypatch, caplog
):
    caplog.set_level("INFO")
    choose = run_attention.chooser(options, toy.train(), gpu, {})
    seen = []

    def measured(model, images, precision, tolerance, compiled, warn):
        seen.append((len(images), tolerance))
        return {name: {"dense": 1.5, "sampled": 3.0} for name in ways.layers(model) if name[0] == "D"}

    monkeypatch.setattr(ways, "measure", measured)
    chosen = choose(golden_images)
    assert seen == [(len(golden_images), ways.EXACT)]
    assert {way for name, way in chosen.items() if name[0] == "D"} == {"dense"}
    assert chosen == ways.ways_of(toy)
    assert [line for line in caplog.messages if "D 32 channels, 4 heads: dense* 1.50, sampled 3.00" in line]


def test_a_resumed_run_takes_the_ways_that_it_had(toy, options, gpu):
    known = ways.ways_of(toy) | {"D 32 channels, 4 heads": "dense"}
    assert run_attention.chooser(options, toy, gpu, known) is None
    assert ways.ways_of(toy) == known


def test_nothing_is_chosen_on_a_cpu_when_told_and_in_the_released_protocol(toy, options, gpu):
    assert run_attention.chooser(options, toy, Precision(torch.device("cpu")), {}) is None
    for other in ({"attention": "dense"}, {"released_protocol": True}):
        assert run_attention.chooser(SimpleNamespace(**vars(options) | other), toy, gpu, {}) is None
    assert set(ways.ways_of(toy).values()) == {"fused", "sampled"}


def test_deterministic_on_a_gpu_is_dense_throughout_and_says_what_it_costs(
    toy, golden_images, options, gpu, monkeypatch, caplog
):
    caplog.set_level("INFO")
    options.deterministic = True
    try:
        run_attention.prepare(options, toy, gpu.device)
        assert torch.are_deterministic_algorithms_enabled()
        assert set(ways.ways_of(toy).values()) == {"dense", "explicit"}
        times = {
            name: {"sampled": 1.0, "dense": 3.0, "fused": 1.0, "explicit": 2.0} for name in ways.layers(toy)
        }
        monkeypatch.setattr(ways, "measure", lambda *_, **__: times)
        run_attention.chooser(options, toy, gpu, {})(golden_images)
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
    assert set(ways.ways_of(toy).values()) == {"dense", "explicit"}
    # The toy has seven layers of windows and three deformable ones.
    assert "attention takes 23.0 ms of a step, instead of 10.0 ms by the fastest ways" in caplog.text


@pytest.mark.slow
def test_dense_trains_to_the_same_metrics_and_resumes(ava, run, ran):
    status, result, _ = run(arguments(ava, attention="dense", experiment_dir_name=ava / "dense"))
    assert status == 0
    assert result["srcc"] == pytest.approx(ran["srcc"], abs=1e-3)
    status, resumed, _ = run(["--resume", "--experiment_dir_name", ava / "dense"])
    assert status == 0
    assert resumed["srcc"] == result["srcc"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"deterministic": True, "attention": "sampled"}, "leave it or --deterministic out"),
        ({"attention": "fast"}, "choose from auto, sampled, dense"),
    ],
)
def test_options_that_do_not_go_together_are_one_line(ava, run, words, message):
    status, _, err = run(arguments(ava, **words))
    assert status == 2
    assert message in err


def test_dense_attention_needs_deformable_layers(options):
    options.attention = "dense"
    with pytest.raises(InputError, match=r"--attention dense: .*no deformable layers"):
        run_attention.prepare(options, torch.nn.Linear(2, 2), torch.device("cpu"))
