"""The variants, timm's interface, compilers and mixed precision."""

import pytest
import timm
import torch
import torch.nn.functional as F
from helpers.networks import make_toy

import models
from benchmarks.straightforward import straightforward_forward
from models.attention import LeanAttention
from util import emd_loss


@pytest.mark.parametrize(
    ("name", "millions"),
    [("eat_tiny", 27.562), ("eat_small", 48.948), ("eat_base", 86.878), ("eat_base_384", 87.175)],
)
def test_variants_have_the_papers_parameters(name, millions):
    with torch.device("meta"):
        model = models.create_model(name, num_classes=10)
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 3) == millions


def test_nano_is_small_and_has_every_kind_of_layer():
    model = models.create_model("eat_nano")
    assert model(torch.randn(1, 3, 224, 224)).shape == (1, 10)
    assert sum(p.numel() for p in model.parameters()) < 1.5e6
    kinds = {type(layer).__name__ for stage in model.stages for layer in stage.attns}
    assert kinds == {"WindowAttention", "ShiftedWindowAttention", "DeformableAttention"}


def test_drop_path_grows_linearly_over_all_blocks():
    model = models.create_model("eat_tiny", drop_path_rate=0.22)
    rates = [rate for stage in model.stages for rate in stage.drop_rates]
    assert rates == pytest.approx([0.02 * i for i in range(12)])


def test_timm_interface():
    assert [name for name in models.list_models() if name != "eat_test"] == [
        "eat_nano",
        "eat_tiny",
        "eat_small",
        "eat_base",
        "eat_base_384",
    ]
    model = timm.create_model("eat_test", num_classes=3).eval()
    images = torch.randn(2, 3, 224, 224)
    features = model.forward_features(images)
    assert features.shape == (2, 7, 7, model.num_features)
    assert model.forward_head(features, pre_logits=True).shape == (2, model.num_features)
    torch.testing.assert_close(model.forward_head(features), model(images))
    assert model.get_classifier().out_features == 3
    model.reset_classifier(5)
    assert model(images).shape == (2, 5)
    model.reset_classifier(0, global_pool="")
    assert model(images).shape == (2, 7, 7, model.num_features)
    tables = model.no_weight_decay()
    assert "stages.0.attns.0.relative_position_bias_table" in tables
    assert "stages.3.attns.0.rpe_table" in tables


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"img_size": 200}, "img_size 200"),
        ({"use_dwc_mlps": (True,) * 4}, "use_dwc_mlps"),
        ({"strides": (-1, -1, 2, 1)}, "strides"),
        ({"stage_spec": [["L", "X"]] * 4}, "X"),
        ({"no_such_setting": 1}, "no_such_setting"),
        ({"groups": (-1, -1, -1, 3)}, "3 groups"),
        ({"window_sizes": (6, 7, 7, 7)}, "windows of 6"),
        ({"heads": (1, 2, 4)}, "heads"),
        ({"dims": (24, 48, 96, 192, 384)}, "dims"),
    ],
)
def test_settings_that_the_method_lacks_are_refused(overrides, message):
    with pytest.raises(ValueError, match=message):
        models.create_model("eat_test", **overrides)


def test_unknown_model_names_the_known_ones():
    with pytest.raises(ValueError, match="eat_nano, eat_tiny"):
        models.create_model("resnet50")


def test_images_of_another_size_are_refused():
    with pytest.raises(ValueError, match=r"takes 224x224"):
        models.create_model("eat_nano")(torch.randn(1, 3, 256, 256))


def test_equals_the_straightforward_formulation(golden_images):
    torch.manual_seed(0)
    model = models.create_model("eat_nano").eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.1)
    with torch.no_grad():
        expected = straightforward_forward(model, golden_images)
        torch.testing.assert_close(model(golden_images), expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("bias_batch", [1, 3])
def test_lean_attention_equals_torchs_own(bias_batch):
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 10, 3, 2, 8).unbind(2)  # (B, tokens, heads, d), strided as in the network
    tensors = [t.transpose(1, 2).detach().requires_grad_() for t in (q, k, v)]
    tensors.append(torch.randn(bias_batch, 10, 10, 2).permute(0, 3, 1, 2).requires_grad_())
    lean, own = LeanAttention.apply(*tensors), F.scaled_dot_product_attention(*tensors)
    torch.testing.assert_close(lean, own)
    weights = torch.randn_like(own)
    for a, b in zip(
        torch.autograd.grad(lean, tensors, weights), torch.autograd.grad(own, tensors, weights), strict=True
    ):
        torch.testing.assert_close(a, b)


def test_forward_never_waits_for_the_device():
    """On the meta device there is no data: `.item()`, numpy or a data-dependent choice would fail."""
    with torch.device("meta"):
        model = make_toy(drop_rate=0.0).to("meta")
        assert model(torch.randn(2, 3, 224, 224)).shape == (2, 10)


def test_bf16_stays_close_and_keeps_coordinates_in_float32(toy, golden, golden_images):
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        prediction, points = toy(golden_images, return_points=True)
    assert all(value.dtype == torch.float32 for layer in points.values() for value in layer)
    first = points["stages.2.attns.1"].positions
    assert (first - golden["eval/stages.2.attns.1/positions"]).abs().median() < 2**-8  # bf16's own step
    error = (prediction.float() - golden["eval/prediction"]).abs()
    spread = golden["eval/prediction"].std()
    assert error.mean() < 0.1 * spread


def test_a_bf16_network_runs(toy, golden, golden_images):
    prediction = toy.bfloat16()(golden_images.bfloat16())
    assert prediction.dtype == torch.bfloat16
    assert (prediction.float() - golden["eval/prediction"]).abs().mean() < 0.3 * golden[
        "eval/prediction"
    ].std()


def test_bf16_trains_as_float32_does(toy, golden, golden_images):
    toy.train()
    optimizer = torch.optim.Adam(toy.parameters(), lr=1e-4)
    for step in range(3):
        with torch.autocast("cpu", torch.bfloat16):
            prediction = toy(golden_images)
        loss = emd_loss(prediction.float(), golden["input/target"])
        assert loss.item() == pytest.approx(golden[f"train/step{step}/loss"].item(), rel=0.05)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert all(parameter.grad.isfinite().all() for parameter in toy.parameters())
