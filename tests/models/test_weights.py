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


def test_weights_travel_back(tmp_path):
    """What we save is a plain released-style state_dict: same names, same values."""
    model = fresh()
    load_weights(model, TOY)
    torch.save(model.state_dict(), tmp_path / "best.pth")
    state = torch.load(tmp_path / "best.pth", weights_only=True)
    released = load_file(TOY)
    assert set(state) == set(released)
    assert all(torch.equal(state[name], released[name]) for name in released)


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


def test_imagenet_dat_with_another_gap_is_refused(tmp_path):
    state = {name: value for name, value in load_file(TOY).items() if "ref_point14" not in name}
    del state["stages.2.attns.1.proj_q.weight"]
    torch.save({"model": state}, tmp_path / "dat.pth")
    with pytest.raises(WeightsError, match=r"1 missing: stages\.2\.attns\.1\.proj_q\.weight"):
        load_weights(fresh(), tmp_path / "dat.pth")


def test_missing_unexpected_and_misshapen_are_all_named_and_nothing_is_loaded(tmp_path):
    state = load_file(TOY)
    del state["cls_norm.norm.weight"]
    state["extra.weight"] = torch.zeros(1)
    state["cls_head.weight"] = torch.zeros(1, 64)
    torch.save(state, tmp_path / "w.pth")
    model = fresh()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(WeightsError) as error:
        load_weights(model, tmp_path / "w.pth")
    for part in (
        "1 missing: cls_norm.norm.weight",
        "1 unexpected: extra.weight",
        "(1, 64) in the file, (10, 64)",
    ):
        assert part in str(error.value)
    assert same(model, before)


def test_table_with_other_heads_is_not_resized(tmp_path):
    state = load_file(TOY)
    state["stages.2.attns.1.rpe_table"] = torch.zeros(3, 27, 27)
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"rpe_table \(\(3, 27, 27\)"):
        load_weights(fresh(), tmp_path / "w.pth")


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
        ("module.cls_head.bias", torch.zeros(10), "twice"),
        ("stages.0.attns.0.relative_position_bias_table", torch.zeros(50, 1), "misshapen"),
        ("stages.0.attns.0.relative_position_bias_table", torch.zeros(0, 1), "misshapen"),
        ("stages.2.attns.1.rpe_table", torch.zeros(4, 0, 0), "misshapen"),
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


def test_missing_file_is_named(tmp_path):
    with pytest.raises(WeightsError, match="no such weights file"):
        load_weights(fresh(), tmp_path / "nowhere.pth")
