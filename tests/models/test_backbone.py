"""timm's networks beside EAT: their heads, their own input, what they remember, and weights that do not fit."""

import pytest
import timm
import torch

import models
from iaa.errors import InputError
from models import Purpose, load_weights
from models.backbone import create_backbone

SMALL = ("timm/test_resnet", "timm/test_vit")


@pytest.mark.parametrize("name", SMALL)
def test_network_has_a_head_of_the_datasets_size_and_timms_own_input(name):
    model = models.create_model(name, num_classes=10)
    assert model.training
    assert model.img_size == 160
    assert model.statistics == ((0.5,) * 3, (0.5,) * 3)
    assert model(torch.randn(2, 3, 160, 160)).shape == (2, 10)


def test_what_it_remembers_travels_with_its_weights(tmp_path):
    model = models.create_model(SMALL[0], num_classes=1)
    model.purpose, model.photographs = Purpose(model=SMALL[0], scale=(0.0, 1.0)), {"train": "abc"}
    torch.save(model.state_dict(), tmp_path / "best.pth")
    weights = models.read_weights(tmp_path / "best.pth")
    assert weights.purpose.model == SMALL[0]
    assert weights.photographs == {"train": "abc"}
    again = models.create_model(SMALL[0], num_classes=1)
    again.load_state_dict(torch.load(tmp_path / "best.pth", weights_only=True))
    assert again.photographs == {"train": "abc"}
    assert again.purpose == Purpose()
    assert load_weights(models.create_model(SMALL[0], num_classes=1), weights) == []


@pytest.mark.parametrize("name", SMALL)
def test_imagenets_head_is_left_out_and_all_else_is_loaded(name, tmp_path):
    source = timm.create_model(name.removeprefix("timm/"), num_classes=1000)
    (tmp_path / "hub").mkdir()
    torch.save(source.state_dict(), tmp_path / "hub" / "pytorch_model.bin")
    model = models.create_model(name, num_classes=10)
    head = model.pretrained_cfg["classifier"]
    before = model.state_dict()[f"{head}.weight"].clone()
    fresh = load_weights(model, f"local-dir:{tmp_path / 'hub'}")
    assert fresh == [f"{head}.bias", f"{head}.weight"]
    assert torch.equal(model.get_parameter(f"{head}.weight"), before)
    for key in set(source.state_dict()) - set(fresh):
        assert torch.equal(model.state_dict()[key], source.state_dict()[key])


def test_weights_load_into_a_plain_network_of_timm(tmp_path):
    source, plain = (timm.create_model("test_resnet", num_classes=outputs) for outputs in (10, 1))
    torch.save({"state_dict_ema": source.state_dict()}, tmp_path / "resnet.pth")
    assert load_weights(plain, tmp_path / "resnet.pth") == ["fc.bias", "fc.weight"]
    assert torch.equal(plain.conv1[0].weight, source.conv1[0].weight)
    plain.pretrained_cfg = None
    with pytest.raises(models.WeightsError, match="name the network that the weights were trained with"):
        load_weights(plain, tmp_path / "resnet.pth")


def test_weights_of_another_architecture_are_one_line(tmp_path):
    torch.save(create_backbone(SMALL[1]).state_dict(), tmp_path / "vit.pth")
    with pytest.raises(models.WeightsError, match=r"vit\.pth does not fit this network"):
        load_weights(create_backbone(SMALL[0]), tmp_path / "vit.pth")


def test_unknown_names_get_the_three_nearest():
    with pytest.raises(InputError, match=r"^[^-]*nearest are resnet50[^,]*, [^,]+, [^,]+$"):
        models.create_model("timm/resnet5o")


def test_networks_without_a_pooled_head_and_odd_settings_are_refused(monkeypatch):
    monkeypatch.setattr(
        timm, "create_model", lambda *_, **__: timm.models.create_model("test_vit", num_classes=0)
    )
    with pytest.raises(InputError, match="no pooled head"):
        create_backbone("timm/test_vit", 10)
    monkeypatch.undo()
    with pytest.raises(InputError, match="does not take no_such"):
        create_backbone("timm/test_resnet", no_such=1)
