"""Weights in every form that users have them in, and files that must be refused."""

import argparse
import logging
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.networks import GOLDEN, make_toy
from safetensors.torch import load_file, save_file

from models import WeightsError, load_weights, read_weights
from models.purpose import attach

TOY = GOLDEN / "toy_weights.safetensors"


def fresh():
    torch.manual_seed(7)
    return make_toy(drop_rate=0.0)


def same(model, state):
    return all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("form", ["pth", "safetensors"])
def test_every_form_loads(tmp_path, form):
    state = load_file(TOY)
    path = tmp_path / ("w.safetensors" if form == "safetensors" else "w.pth")
    if form == "safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    model = fresh()
    assert not same(model, state)
    load_weights(model, path)
    assert same(model, state)
    torch.save(model.state_dict(), tmp_path / "best.pth")  # what we save is a plain released-style state_dict
    assert set(torch.load(tmp_path / "best.pth", weights_only=True)) == set(state)


def prefixed(*prefixes):
    """The toy's tensors, their names with these prefixes in turn."""
    return {f"{prefixes[i % len(prefixes)]}{name}": v for i, (name, v) in enumerate(load_file(TOY).items())}


STATE, OTHER = load_file(TOY), {"cls_head.bias": torch.ones(10)}
ARGUMENTS = {"hyper_parameters": argparse.Namespace(lr=0.1), "epoch": np.int64(3), "best": np.float32(0.5)}
KEPT = {  # a file's content, and what the log tells of it
    "parallel": (prefixed("module."), 'without prefixes such as "module."'),
    "compiled": (prefixed("_orig_mod."), 'such as "_orig_mod."'),
    "both": (prefixed("module._orig_mod.", "_orig_mod.module.", "module.module.", ""), "without prefixes"),
    "averaged": (prefixed("module.") | {"n_averaged": torch.tensor(3)}, 'such as "module."'),
    "block": ({n.replace(".attns.", "._orig_mod.attns."): v for n, v in STATE.items()}, "without prefixes"),
    "model": ({"model": STATE, "epoch": 3}, 'read "model"'),
    "others": ({"model_state_dict": STATE, "optimizer": {"state": {}}, "model": {"depth": 2}} | ARGUMENTS, "state_dict"),
    "net": ({"net": prefixed("module.")}, 'such as "module."'),
    "average": ({"params": OTHER, "params_ema": STATE}, 'read "params_ema", an average of the weights, not "params"'),
    "nested": ({"model": {"state_dict": OTHER}, "ema": {"state_dict": STATE}}, 'read "ema/state_dict", an average'),
    "lightning": ({"state_dict": prefixed("model."), "callbacks": {}} | ARGUMENTS, 'read "state_dict"'),
    "lightning, loss": ({"state_dict": prefixed("model.") | {"loss.weight": torch.ones(3)}}, 'such as "model."'),
    "lightning, average": (
        {"state_dict": prefixed("ema.module.") | {"ema.n_averaged": torch.tensor(3), "model.cls_head.bias": torch.ones(10)}},
        'names, those of an average of the weights, without prefixes such as "ema.module."',
    ),
    "lightning, two": ({"state_dict": prefixed("ema_model.") | {f"model.{n}": v * 2 for n, v in STATE.items()}}, "an average"),
    "lightning, both": ({"state_dict": prefixed("model.module._orig_mod.", "_orig_mod.model.")}, "without prefixes"),
}  # fmt: skip


@pytest.mark.parametrize("kind", KEPT)
def test_weights_load_as_training_programs_keep_them_and_the_log_tells(tmp_path, caplog, kind):
    caplog.set_level(logging.INFO)
    content, told = KEPT[kind]
    torch.save(content, tmp_path / "w.pth")
    model = fresh()
    load_weights(model, tmp_path / "w.pth")
    assert same(model, STATE)
    assert told in caplog.text


def test_two_networks_in_a_file_are_refused_by_name(tmp_path):
    torch.save({"model": STATE, "net": OTHER}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="holds several networks, model, net; save one"):
        read_weights(tmp_path / "w.pth")


def test_our_own_files_keep_names_that_look_like_prefixes(tmp_path):
    network = torch.nn.ModuleDict({"module": torch.nn.Linear(2, 2)})
    attach(network, {})
    torch.save(network.state_dict(), tmp_path / "w.pth")
    assert load_weights(network, tmp_path / "w.pth") == []


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


def test_a_head_of_another_size_starts_fresh_where_that_is_asked(tmp_path):
    state = load_file(TOY) | {"cls_head.weight": torch.zeros(3, 64), "cls_head.bias": torch.zeros(3)}
    torch.save(state, tmp_path / "w.pth")
    model = fresh()
    before = {name: value.clone() for name, value in model.cls_head.state_dict().items()}
    assert load_weights(model, tmp_path / "w.pth", fresh_head=True) == ["cls_head.bias", "cls_head.weight"]
    assert all(torch.equal(value, before[name]) for name, value in model.cls_head.state_dict().items())
    name = "cls_norm.norm.weight"
    assert torch.equal(model.state_dict()[name], state[name])


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


def test_another_object_is_refused_with_the_way_to_convert(tmp_path):
    torch.save({"state_dict": STATE, "args": argparse.Namespace(folder=Path("data"))}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"refused, .* torch\.save\(network\.state_dict\(\), FILE\)"):
        read_weights(tmp_path / "w.pth")


@pytest.mark.parametrize("kind", ["expanded", "expanded, legacy", "many expanded", "deflated"])
def test_files_that_claim_more_than_they_have_are_refused_before_anything_is_allocated(
    tmp_path, monkeypatch, kind
):
    path, count = tmp_path / "w.pth", 10**8 if kind == "many expanded" else 10**11
    if kind == "deflated":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("w/data/0", bytes(2**25))
        monkeypatch.setattr(torch, "load", None)
    else:
        names = [f"large{i}" for i in range(50)]
        large = dict.fromkeys(names, torch.zeros(1).expand(count))
        torch.save({"net": STATE | large}, path, _use_new_zipfile_serialization="legacy" not in kind)
    with pytest.raises(
        WeightsError, match=r"w\.pth: refused, it has [\d,]+ bytes and claims to hold [\d,]{10,}$"
    ):
        read_weights(path)


def test_names_and_metadata_reach_the_terminal_as_text(tmp_path):
    network = torch.nn.Linear(2, 2)
    attach(network, {})
    state = network.state_dict()
    torch.save(state | {"a\x1b[2J": torch.zeros(1)}, tmp_path / "name.pth")
    state._metadata[""]["purpose"]["model"] = "eat\x1b[2J"
    torch.save(state, tmp_path / "model.pth")
    header = b'{"a": {"dtype":"\\u001b[2J","shape":[],"data_offsets":[0,0]}}'
    (tmp_path / "dtype.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    for name in ("name.pth", "model.pth", "dtype.safetensors"):
        with pytest.raises(WeightsError, match=r"\\x1b|\\u001b") as error:
            read_weights(tmp_path / name)
        assert str(error.value).isprintable()


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
