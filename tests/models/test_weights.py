"""Weights in every form that users have them in, and files that must be refused."""

import pickle

import pytest
import torch
from helpers.networks import GOLDEN, make_toy
from safetensors.torch import load_file, save_file

from models import WeightsError, load_weights

TOY = GOLDEN / "toy_weights.safetensors"


def fresh():
    torch.manual_seed(7)
    return make_toy(drop_rate=0.0)


def same(model, state):
    return all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("form", ["pth", "module", "model", "safetensors"])
def test_every_form_loads(tmp_path, form):
    state = load_file(TOY)
    path = tmp_path / ("w.safetensors" if form == "safetensors" else "w.pth")
    if form == "safetensors":
        save_file(state, path)
    elif form == "module":
        torch.save({f"module.{name}": value for name, value in state.items()}, path)
    elif form == "model":
        torch.save({"model": state, "epoch": 3}, path)
    else:
        torch.save(state, path)
    model = fresh()
    assert not same(model, state)
    load_weights(model, path)
    assert same(model, state)
    torch.save(model.state_dict(), tmp_path / "best.pth")  # what we save is a plain released-style state_dict
    assert set(torch.load(tmp_path / "best.pth", weights_only=True)) == set(state)


def test_imagenet_dat_leaves_head_and_interest_points_fresh(tmp_path):
    state = {name: value for name, value in load_file(TOY).items() if "ref_point14" not in name}
    state |= {"cls_head.weight": torch.zeros(1000, 64), "cls_head.bias": torch.zeros(1000)}
    torch.save({"model": state}, tmp_path / "dat.pth")
    model = fresh()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert "cls_head.weight" in load_weights(model, tmp_path / "dat.pth")
    for name, value in model.state_dict().items():
        kept = "ref_point14" in name or name.startswith("cls_head.")
        assert torch.equal(value, before[name] if kept else state[name]), name


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("cls_norm.norm.weight", None, r"cls_norm.norm.weight is absent in the file, \(64,\) in the network"),
        ("extra.weight", torch.zeros(1), r"extra.weight is \(1,\) in the file, absent in the network"),
        ("cls_head.weight", torch.zeros(1, 64), r"\(1, 64\) in the file, \(10, 64\) in the network"),
        ("stages.2.attns.1.rpe_table", torch.zeros(3, 27, 27), r"\(3, 27, 27\) in the file"),
        ("stages.2.attns.1.rpe_table", torch.zeros(4, 0, 0), r"\(4, 0, 0\) in the file"),
        ("stages.0.attns.0.relative_position_bias_table", torch.zeros(50, 1), r"\(50, 1\) in the file"),
        ("stages.0.attns.0.relative_position_bias_table", torch.zeros(0, 1), r"\(0, 1\) in the file"),
    ],
)
def test_weights_that_do_not_fit_are_one_line_and_nothing_is_loaded(tmp_path, name, value, told):
    state = load_file(TOY)
    state.pop(name, None)
    torch.save(state if value is None else state | {name: value}, tmp_path / "w.pth")
    model = fresh()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(WeightsError, match=rf"w\.pth does not fit .* differ: 1, first .*{told}"):
        load_weights(model, tmp_path / "w.pth")
    assert same(model, before)


def test_a_plain_dat_may_lack_nothing_but_interest_points(tmp_path):
    state = {name: value for name, value in load_file(TOY).items() if "ref_point14" not in name}
    del state["stages.2.attns.1.proj_q.weight"]
    torch.save(state, tmp_path / "dat.pth")
    with pytest.raises(WeightsError, match=r"first stages\.2\.attns\.1\.proj_q\.weight"):
        load_weights(fresh(), tmp_path / "dat.pth")


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize("form", ["torch", "pickle", "legacy"])
def test_malicious_pickle_executes_nothing(tmp_path, form):
    witness, path = tmp_path / "executed", tmp_path / "w.pth"
    content = {"cls_head.bias": torch.zeros(10), "boom": Malicious(str(witness))}
    if form == "pickle":
        path.write_bytes(pickle.dumps({"boom": Malicious(str(witness))}))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "torch")
    with pytest.raises(WeightsError, match="refused") as error:
        load_weights(fresh(), path)
    assert "\n" not in str(error.value)
    assert not witness.exists()


@pytest.mark.parametrize("content", [{"a": 1.5}, {"a": "text"}, {"model": {"a": [1]}}, [torch.zeros(1)], {}])
def test_anything_but_tensors_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"not a tensor|expected named tensors"):
        load_weights(fresh(), tmp_path / "w.pth")


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
@pytest.mark.parametrize("content", [b"", b"not weights at all", b"PK\x03\x04 broken"])
def test_damaged_files_are_one_line(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsError) as error:
        load_weights(fresh(), tmp_path / name)
    assert "\n" not in str(error.value)
    assert name in str(error.value)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("cls_head.bias", torch.full((10,), torch.nan), "not finite"),
        ("cls_head.bias", torch.zeros(10, dtype=torch.complex64), "not a plain tensor"),
        ("cls_head.bias", torch.zeros(10).to_sparse(), "not a plain tensor"),
    ],
)
def test_odd_tensors_are_refused(tmp_path, name, value, message):
    torch.save(load_file(TOY) | {name: value}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=message):
        load_weights(fresh(), tmp_path / "w.pth")


def test_index_and_mask_are_the_networks_own(tmp_path):
    name = "stages.0.attns.0.relative_position_index"
    torch.save(load_file(TOY) | {name: torch.full((49, 49), 10**6)}, tmp_path / "w.pth")
    model = fresh()
    load_weights(model, tmp_path / "w.pth")
    assert torch.equal(model.state_dict()[name], load_file(TOY)[name])


def test_missing_files_are_named(tmp_path):
    with pytest.raises(WeightsError, match="no such weights file"):
        load_weights(fresh(), tmp_path / "nowhere.pth")
    with pytest.raises(WeightsError, match=r"a folder without model.safetensors, .*best.pth"):
        load_weights(fresh(), tmp_path)
