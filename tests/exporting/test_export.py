"""Exports: equal to the network, say how they are fed, and lose nothing when something is wrong."""

import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import export
import models
from iaa.exporting import description, torch_files
from iaa.exporting.description import describe, preprocess
from iaa.networks.trained_network import TrainedNetwork, load_network
from iaa.photographs.labels import FORMATS

COMMAND = export
onnx = pytest.importorskip("onnx", reason="requirements/export.txt")
onnx_file = pytest.importorskip("iaa.exporting.onnx_file", reason="requirements/export.txt")


def expected(path, files):
    """The network's own prediction and score, from our own pixels."""
    trained = load_network(path)
    with torch.no_grad():
        prediction = trained.model(description.evaluation_input(trained, files))
    assert np.ptp(prediction.numpy(), axis=0).min() > 1e-3, "nothing would be compared"
    return prediction.numpy(), trained.scores(prediction).numpy()


@pytest.mark.slow
@pytest.mark.usefixtures("unoptimised")
def test_onnx_with_points_of_the_batch_is_the_network(tmp_path, golden_images):
    torch.manual_seed(3)
    small = models.create_model("eat_test").eval().requires_grad_(False)
    small.cls_head.weight.mul_(30)  # else all images have nearly one prediction
    path, weights = tmp_path / "a.onnx", tmp_path / "a.pth"
    torch.save(small.state_dict(), weights)
    small.purpose = replace(small.purpose, model="eat_test", dataset="ava")
    trained = TrainedNetwork(small, FORMATS["ava"], weights)
    onnx_file.write_onnx(trained, path, describe(trained))
    _, run = onnx_file.open_onnx(path)
    for images in (golden_images, golden_images[:2]):
        right = small(images).numpy()
        assert np.ptp(right, axis=0).max() > 0.01
        np.testing.assert_allclose(run(images.numpy())[0], right, rtol=0, atol=1e-4)


OPENERS = {
    "onnx": onnx_file.open_onnx,
    "safetensors": torch_files.open_safetensors,
    "hub": torch_files.open_hub,
}


@pytest.mark.parametrize(
    ("weights", "form"),
    [
        pytest.param("votes", "onnx", marks=pytest.mark.slow),
        ("votes", "safetensors"),
        ("score", "safetensors"),
        ("votes", "hub"),
        ("score", "hub"),
    ],
)
def test_export_equals_the_network_on_photographs(exported, made, photographs, weights, form):
    """Fed by nothing but what it says of itself, for any number of photographs."""
    path, printed = exported(weights, form)
    about, run = OPENERS[form](path)
    assert about["preprocessing"]["resize"]["method"] == {"votes": "bicubic", "score": "bilinear"}[weights]
    assert printed["largest_difference"]["prediction"] < 1e-4
    for count in (1, 2, 5):
        inputs = np.concatenate([preprocess(about, file) for file in photographs[:count]])
        with torch.no_grad():
            exported_outputs = run(inputs)
        for ours, theirs in zip(expected(made[weights], photographs), exported_outputs, strict=True):
            np.testing.assert_allclose(theirs, ours[:count], rtol=0, atol=1e-4)


@pytest.mark.slow
def test_onnx_names_its_inputs_outputs_and_operators_and_its_batch_is_free(exported):
    path, _ = exported("votes", "onnx")
    model = onnx.load(path)
    shapes = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }
    assert shapes == {"images": ["batch", 3, 224, 224], "prediction": ["batch", 10], "score": ["batch"]}
    assert "GridSample" in {node.op_type for node in model.graph.node}
    assert {entry.domain for entry in model.opset_import} == {node.domain for node in model.graph.node} | {""}
    assert onnx_file.open_onnx(path)[0]["opset"] == onnx_file.OPSET


def test_score_is_on_the_datasets_own_scale(exported, made, photographs):
    about, _ = torch_files.open_hub(exported("score", "hub")[0])
    assert about["score"]["weights"] == [10.0]
    assert about["score"]["offset"] == -3.0
    prediction, score = expected(made["score"], photographs)
    np.testing.assert_allclose(score, -3 + 10 * prediction[:, 0], rtol=1e-6)


@pytest.mark.parametrize("form", ["safetensors", "hub"])
def test_settings_and_purpose_travel(exported, made, form):
    before, after = load_network(made["score"]), load_network(exported("score", form)[0])
    for name in ("name", "dataset", "scale", "points"):
        assert getattr(after, name) == getattr(before, name)
    settings = {"interest_points": "grid", "refinement": "scheduled"}
    assert after.model.purpose.settings == before.model.purpose.settings == settings
    state = before.model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in after.model.state_dict().items())


@pytest.mark.slow
def test_no_artifact_tells_where_it_was_made(exported):
    here = str(Path(models.__file__).parent).encode()
    for form in ("onnx", "safetensors"):
        assert here not in exported("votes", form)[0].read_bytes(), form


@pytest.mark.slow
def test_points_of_the_batch_are_exported_only_when_asked_for(command, made, tmp_path, caplog):
    words = ("--weights", made["votes"], "--to", "safetensors", "--out", tmp_path / "a.safetensors")
    status, out, _ = command(*words, "--interest_points", "batch")
    assert (status, json.loads(out)["interest_points"]) == (0, "batch")
    assert "interest points: batch, in training image" in caplog.text
    again = ("--weights", tmp_path / "a.safetensors", *words[2:4], "--out", tmp_path / "b.safetensors")
    assert json.loads(command(*again)[1])["interest_points"] == "image"


def test_export_that_differs_is_refused_and_what_was_there_stays(command, made, tmp_path, monkeypatch):
    out = tmp_path / "a.safetensors"
    out.write_bytes(b"precious")
    read = torch_files.open_safetensors

    def misleading(path):
        about, run = read(path)
        about["preprocessing"]["mean"] = [0.5, 0.5, 0.5]
        return about, run

    monkeypatch.setattr(torch_files, "open_safetensors", misleading)
    words = ("--weights", made["votes"], "--to", "safetensors", "--out", out, "--overwrite")
    status, _, err = command(*words)
    assert status == 1
    assert "differs from PyTorch's by" in err
    assert out.read_bytes() == b"precious"
    assert [path.name for path in tmp_path.iterdir()] == [out.name]


def test_interrupted_export_leaves_what_was_there(command, made, tmp_path, monkeypatch):
    out = tmp_path / "hub"
    words = ("--weights", made["votes"], "--to", "hub", "--out", out, "--overwrite")
    assert command(*words)[0] == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(torch_files, "open_hub", interrupted)
    assert command(*words)[0] == 130
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["hub"]


@pytest.mark.slow
def test_overwrite_replaces_a_file_and_a_folder(command, made, tmp_path):
    out = tmp_path / "new" / "folder"  # made if need be
    for form in ("safetensors", "hub"):
        words = ("--weights", made["votes"], "--to", form, "--out", out / f"my.{form}")
        assert command(*words)[0] == 0
        status, _, err = command(*words)
        assert status == 2
        assert "is there already; give --overwrite" in err
        assert command(*words, "--overwrite")[0] == 0
    (out / "my.hub" / "thesis.txt").write_text("precious")
    status, _, err = command(*words, "--overwrite")
    assert (status, (out / "my.hub" / "thesis.txt").read_text()) == (2, "precious")
    assert "holds something that no such export has written" in err
    assert sorted(path.name for path in out.iterdir()) == ["my.hub", "my.safetensors"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--weights", "nowhere.pth"), "no such weights file"),
        (("--weights", "."), "a folder without model.safetensors"),
        (("--weights", "bare.pth"), "--dataset"),
        (("--weights", "bare.pth", "--dataset", "ava"), "has 1 outputs, and networks for ava have 10"),
        (("--weights", "bare.pth", "--dataset", "csv"), "nothing states its scale"),
        (("--weights", "bare.pth", "--dataset", "csv", "--score_min", "3"), "belong together"),
        (("--model", "eat_tiny"), "its model is eat_test"),
        (("--out", "/proc/a.safetensors"), "check the path and the disk"),
        (("--weights", "own.safetensors", "--out", "own.safetensors"), "would replace the weights"),
        (("--out", "a.pth"), "must end in .safetensors"),
        (("--int8",), "unrecognized arguments: --int8"),
        (("--to", "coreml"), "--to coreml: choose from onnx, safetensors, hub"),
    ],
)
def test_bad_requests_are_one_line_and_lose_nothing(command, made, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    Path("text.pth").write_text("not weights at all")
    Path("good.pth").write_bytes(made["votes"].read_bytes())
    torch.save(dict(models.create_model("eat_test", 1).state_dict()), "bare.pth")
    save_file(dict(torch.load("good.pth")), "own.safetensors")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    words = {"--weights": ("good.pth",), "--to": ("safetensors",)}
    defaults = [word for name, value in words.items() if name not in options for word in (name, *value)]
    status, out, err = command(*defaults, *options)
    assert (status, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_what_another_kind_of_export_or_nobody_wrote_is_not_replaced(command, made, tmp_path):
    (tmp_path / "file_hub").write_text("precious")
    (tmp_path / "folder.safetensors").mkdir()
    for form, out in (("hub", "file_hub"), ("safetensors", "folder.safetensors")):
        words = ("--weights", made["votes"], "--to", form, "--out", tmp_path / out, "--overwrite")
        status, _, err = command(*words)
        assert status == 2
        assert "that no such export has written" in err
    assert (tmp_path / "file_hub").read_text() == "precious"


def test_a_link_is_exported_under_its_own_name(command, made, tmp_path):
    (tmp_path / "link.pth").symlink_to(made["votes"])
    assert command("--weights", tmp_path / "link.pth", "--to", "safetensors")[0] == 0
    assert (tmp_path / "link.safetensors").is_file()


def test_packages_that_are_missing_are_named(command, made, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    status, _, err = command("--weights", made["votes"], "--to", "onnx", "--out", tmp_path / "a.onnx")
    assert status == 2
    assert "--to onnx needs onnxscript: pip install -r requirements/export.txt" in err


@pytest.mark.slow
def test_example_of_the_docs_runs(exported, made, photographs, tmp_path, monkeypatch, capsys):
    text = (Path(__file__).parents[2] / "docs" / "exports.md").read_text()
    example = next(
        code for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "onnxruntime" in code
    )
    monkeypatch.chdir(tmp_path)
    Path("best.onnx").symlink_to(exported("votes", "onnx")[0])
    for name, file in (("one.jpg", photographs[0]), ("two.jpg", photographs[1])):
        Path(name).write_bytes(file)
    exec(compile(example, "docs/exports.md", "exec"), {})
    printed = [float(word) for word in re.findall(r"-?\d+\.\d+", capsys.readouterr().out)]
    np.testing.assert_allclose(printed, expected(made["votes"], photographs)[1][:2], rtol=0, atol=1e-3)
