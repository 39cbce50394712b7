"""Exports: equal to the network, say how they are fed, and lose nothing when something is wrong."""

import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from conftest import GOLDEN
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import save_file

import export
import models
from exporting import check, hub, onnx_file, torch_files
from exporting.about import describe, preprocess
from models.sampling import gathers, sample, sample_by_gather
from trained import Trained, load_trained

COMMAND = export
onnx = pytest.importorskip("onnx", reason="requirements-export.txt")
pytest.importorskip("onnxruntime", reason="requirements-export.txt")


@pytest.fixture(scope="module")
def photographs():
    return check.photographs()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Weights files: `votes`, of AVA, points of each image; `score`, of a CSV's scores from -3 to 7, running points."""
    folder, paths = tmp_path_factory.mktemp("weights"), {}
    for name, outputs, points in (("votes", 10, "image"), ("score", 1, "running")):
        torch.manual_seed(3)
        network = models.create_model("eat_nano", outputs, interest_points=points, refinement="scheduled")
        # Fresh weights give all photographs nearly the same score; with these they differ, as trained ones do.
        for parameter in network.stages.parameters():
            parameter.data.mul_(2)
        network.cls_head.weight.data.mul_(0.1)
        if points == "running":
            models.calibrate_points(network, [torch.randn(2, 3, 224, 224)])
        models.set_refinement(network, (0.5, 0.8))
        network.purpose = {"model": "eat_nano", "dataset": "ava" if outputs == 10 else "csv"}
        network.purpose["score_range"] = [1.0, 10.0] if outputs == 10 else [-3.0, 7.0]
        paths[name] = folder / f"{name}.pth"
        torch.save(network.state_dict(), paths[name])
    return paths


@pytest.fixture(scope="module")
def exported(made, tmp_path_factory):
    """One export of each form, made once: exported(form, *options) gives its path and what the command printed."""
    folder, cache = tmp_path_factory.mktemp("exports"), {}

    def get(weights, form, *options):
        key = (weights, form, *options)
        if key not in cache:
            out = folder / f"{len(cache)}{export.ENDINGS[form]}"
            words = ["--weights", str(made[weights]), "--to", form, "--out", str(out), *options]
            cache[key] = out, export.export(export.parse(words))
        return cache[key]

    return get


def expected(path, files):
    """The network's own prediction and score, from our own pixels."""
    trained = load_trained(path)
    with torch.no_grad():
        prediction = trained.model(check.our_input(trained, files))
    assert np.ptp(prediction.numpy(), axis=0).min() > 1e-3, "nothing would be compared"
    return prediction.numpy(), trained.scores(prediction).numpy()


def places():
    """Sampling positions (x, y): inside, on the borders and cells' centres, just and far outside."""
    torch.manual_seed(0)
    line = torch.tensor([-1e6, -1.5, -1.2, -1.0000001, -1.0, -1 / 3, 0.0, 0.2, 1.0, 1.0000001, 1.1, 1e6])
    grid = torch.cartesian_prod(line, line).view(1, 12, 12, 2)
    return torch.cat([grid, 1.5 * torch.randn(1, 12, 12, 2)])


@pytest.mark.parametrize("shape", [(7, 9), (1, 4), (27, 27)])
def test_gathers_sample_as_grid_sample_does(shape):
    maps = torch.randn(2, 3, *shape)
    torch.testing.assert_close(sample_by_gather(maps, places()), sample(maps, places()), rtol=0, atol=1e-5)


def test_gathers_have_grid_samples_gradient():
    gradients = []
    for function in (sample, sample_by_gather):
        maps = torch.randn(2, 3, 7, 9, generator=torch.Generator().manual_seed(1)).requires_grad_()
        grid = (0.4 * places().clamp(-2, 2)).requires_grad_()
        function(maps, grid).square().sum().backward()
        gradients.append((maps.grad, grid.grad))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_the_network_by_gathers_is_the_golden_network(toy, golden, golden_images):
    with torch.no_grad(), gathers():
        torch.testing.assert_close(toy(golden_images), golden["eval/prediction"], rtol=0, atol=1e-5)


def test_onnx_of_the_golden_weights_gives_the_released_numbers(tmp_path, toy, golden, golden_images):
    trained = Trained(
        toy.requires_grad_(False), "eat_nano", "ava", (1.0, 10.0), GOLDEN / "toy_weights.safetensors"
    )
    onnx_file.write_onnx(trained, tmp_path / "a.onnx", describe(trained), True, False, onnx_file.OPSET)
    _, run = onnx_file.open_onnx(tmp_path / "a.onnx")
    for count, name in ((3, "eval/prediction"), (2, "eval/prediction_first_two")):
        np.testing.assert_allclose(
            run(golden_images[:count].numpy())[0], golden[name].numpy(), rtol=0, atol=1e-4
        )


OPENERS = {
    "onnx": onnx_file.open_onnx,
    "torch_export": torch_files.open_archive,
    "safetensors": torch_files.open_safetensors,
    "hub": hub.open_hub,
}


@pytest.mark.parametrize(
    ("weights", "form", "options"),
    [
        ("votes", "onnx", ()),
        ("score", "onnx", ("--gather",)),
        ("score", "torch_export", ()),
        ("votes", "safetensors", ()),
        ("score", "safetensors", ()),
        ("votes", "hub", ()),
        ("score", "hub", ()),
    ],
)
def test_export_equals_the_network_on_photographs(exported, made, photographs, weights, form, options):
    """Fed by nothing but what it says of itself, for any number of photographs."""
    path, printed = exported(weights, form, *options)
    about, run = OPENERS[form](path)
    assert printed["largest_difference"]["prediction"] < 1e-4
    for count in (1, 2, 5):
        inputs = np.concatenate([preprocess(about, file) for file in photographs[:count]])
        with torch.no_grad():
            found = run(inputs)
        for ours, theirs in zip(expected(made[weights], photographs), found, strict=True):
            np.testing.assert_allclose(theirs, ours[:count], rtol=0, atol=1e-4)


def test_onnx_names_its_inputs_and_outputs_and_its_batch_is_free(exported):
    graph = onnx.load(exported("votes", "onnx")[0]).graph
    shapes = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.output)
    }
    assert shapes == {"images": ["batch", 3, 224, 224], "prediction": ["batch", 10], "score": ["batch"]}


def test_only_the_variant_by_gathers_lacks_grid_sample(exported):
    def operators(*key):
        return {node.op_type for node in onnx.load(exported(*key)[0]).graph.node}

    assert "GridSample" in operators("votes", "onnx")
    assert "GridSample" not in operators("score", "onnx", "--gather")


def test_int8_is_smaller_and_nearly_equal(exported):
    (small, printed), (large, _) = exported("votes", "onnx", "--int8"), exported("votes", "onnx")
    assert small.stat().st_size < 0.6 * large.stat().st_size
    assert 1e-4 < printed["largest_difference"]["score"] < 0.9
    assert onnx_file.open_onnx(small)[0]["int8"] is True


@pytest.mark.parametrize(("weights", "method"), [("votes", "bicubic"), ("score", "bilinear")])
def test_preprocessing_that_is_told_is_the_evaluations(made, photographs, weights, method):
    trained = load_trained(made[weights])
    about = describe(trained)
    assert about["preprocessing"]["resize"]["method"] == method
    told = np.concatenate([preprocess(about, file) for file in photographs])
    np.testing.assert_allclose(told, check.our_input(trained, photographs).numpy(), rtol=0, atol=1e-6)


def test_score_is_on_the_datasets_own_scale(exported, made, photographs):
    about, _ = hub.open_hub(exported("score", "hub")[0])
    assert about["score"]["weights"] == [10.0]
    assert about["score"]["offset"] == -3.0
    prediction, score = expected(made["score"], photographs)
    np.testing.assert_allclose(score, -3 + 10 * prediction[:, 0], rtol=1e-6)


@pytest.mark.parametrize("form", ["safetensors", "hub"])
def test_settings_and_purpose_travel(exported, made, form):
    before, after = load_trained(made["score"]), load_trained(exported("score", form)[0])
    for name in ("name", "dataset", "score_range", "points"):
        assert getattr(after, name) == getattr(before, name)
    assert (
        after.model.settings
        == before.model.settings
        == {"interest_points": "running", "refinement": "scheduled"}
    )
    state = before.model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in after.model.state_dict().items())


def test_hub_folder_is_a_model_for_create_model(exported, made, photographs):
    folder, _ = exported("score", "hub")
    trained = load_trained(made["score"])
    images = check.our_input(trained, photographs)
    ours = models.create_model(folder).eval()
    assert ours.purpose["score_range"] == (-3.0, 7.0)
    with torch.no_grad():
        assert torch.equal(ours(images), trained.model(images))


@pytest.mark.skipif(
    tuple(int(part) for part in timm.__version__.split(".")[:3] if part.isdigit()) < (1, 0, 26),
    reason="older timm does not read safetensors in a local folder",
)
def test_hub_folder_is_a_model_for_timm(exported, made, photographs):
    folder, _ = exported("score", "hub")
    trained = load_trained(made["score"])
    images = check.our_input(trained, photographs)
    theirs = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    with torch.no_grad():
        assert torch.equal(theirs(images), trained.model(images))
    transform = timm.data.create_transform(**timm.data.resolve_data_config({}, model=theirs))
    pictures = [Image.open(io.BytesIO(file)).convert("RGB") for file in photographs]
    torch.testing.assert_close(torch.stack([transform(p) for p in pictures]), images, rtol=0, atol=1e-6)


def test_model_card_of_bare_weights_says_that_the_recipe_is_unknown(exported):
    card = ModelCard.load(exported("votes", "hub")[0] / "README.md")
    assert card.data.library_name == "timm"
    assert card.data.datasets == ["ava"]
    assert card.data.eval_results is None
    assert "Unknown: the weights were exported without their run." in card.text
    assert "nothing tells what these weights reached" in card.text


@pytest.fixture
def run_folder(tmp_path, made):
    """A run as main_nni.py leaves it, and its best.pth."""
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "best.pth").write_bytes(made["votes"].read_bytes())
    options = {
        "model": "eat_nano",
        "dataset": "ava",
        "interest_points": "batch",
        "init_lr": 2e-5,
        "schedule": "cosine",
    }
    options |= {"path_to_images": "/home/somebody/AVA", "path_to_model_weight": "/home/somebody/dat.pth"}
    (folder / "options.json").write_text(json.dumps(options | {"decay_every": 5}))
    result = {
        "split": "test",
        "images": 77,
        "interest_points": "batch",
        "srcc": 0.71234,
        "plcc": 0.7,
        "accuracy": None,
    }
    (folder / "run.json").write_text(json.dumps({"status": "done", "result": result}))
    return folder


def test_model_card_is_made_from_the_run(command, run_folder):
    out = run_folder / "hub"
    words = ("--weights", run_folder / "checkpoints" / "best.pth", "--to", "hub", "--out", out)
    assert command(*words)[0] == 0
    card = ModelCard.load(out / "README.md")
    assert {r.metric_type: r.metric_value for r in card.data.eval_results} == {
        "spearmanr": 0.7123,
        "pearsonr": 0.7,
    }
    for part in (
        "started from `dat.pth`",
        "| `init_lr` | 2e-05 |",
        "77 photographs",
        "Measured with interest points of the batch",
    ):
        assert part in card.text
    for part in ("somebody", "decay_every", "None", "| nan"):
        assert part not in card.text


def test_model_card_claims_no_figures_of_other_weights_of_the_run(command, run_folder):
    (run_folder / "checkpoints" / "best.pth").rename(run_folder / "checkpoints" / "early.pth")
    words = (
        "--weights",
        run_folder / "checkpoints" / "early.pth",
        "--to",
        "hub",
        "--out",
        run_folder / "hub",
    )
    assert command(*words)[0] == 0
    text = (run_folder / "hub" / "README.md").read_text()
    assert "0.71" not in text
    assert "| `init_lr` | 2e-05 |" in text


def test_points_of_the_batch_are_exported_only_when_asked_for(command, made, tmp_path, caplog):
    words = ("--weights", made["votes"], "--to", "safetensors", "--out", tmp_path / "a.safetensors")
    status, out, _ = command(*words, "--interest_points", "batch")
    assert (status, json.loads(out)["interest_points"]) == (0, "batch")
    assert "depends on the photographs beside it" in caplog.text
    again = (
        "--weights",
        tmp_path / "a.safetensors",
        "--to",
        "safetensors",
        "--out",
        tmp_path / "b.safetensors",
    )
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

    monkeypatch.setattr(hub, "open_hub", interrupted)
    assert command(*words)[0] == 130
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["hub"]


def test_overwrite_replaces_a_file_and_a_folder(command, made, tmp_path):
    for form in ("safetensors", "hub"):
        words = ("--weights", made["votes"], "--to", form, "--out", tmp_path / f"my.{form}")
        assert command(*words)[0] == 0
        status, _, err = command(*words)
        assert status == 2
        assert "is there already; give --overwrite" in err
        assert command(*words, "--overwrite")[0] == 0
    (tmp_path / "my.hub" / "thesis.txt").write_text("precious")
    status, _, err = command(*words, "--overwrite")
    assert (status, (tmp_path / "my.hub" / "thesis.txt").read_text()) == (2, "precious")
    assert "holds thesis.txt, which no export has written" in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["my.hub", "my.safetensors"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--weights", "nowhere.pth"), "no such weights file"),
        (("--weights", "text.pth"), "text.pth"),
        (("--weights", "."), "no such weights file"),
        (("--weights", "bare.pth"), "--dataset"),
        (("--weights", "bare.pth", "--dataset", "ava"), "has 1 outputs, ava needs 10"),
        (("--weights", "bare.pth", "--dataset", "csv"), "needs --score_min and --score_max"),
        (("--weights", "bare.pth", "--dataset", "csv", "--score_min", "3"), "belong together"),
        (
            ("--weights", "bare.pth", "--dataset", "csv", "--score_min", "3", "--score_max", "3"),
            "is not below",
        ),
        (("--weights", "bare.pth", "--dataset", "para", "--interest_points", "running"), "interest points"),
        (("--model", "eat_tiny"), "says eat_nano"),
        (("--out", "nowhere/a.safetensors"), "no such folder"),
        (("--out", "/proc/a.safetensors"), "check the path and the disk"),
        (("--out", "text.pth/a.safetensors"), "no such folder"),
        (
            ("--weights", "own.safetensors", "--out", "own.safetensors", "--overwrite"),
            "would replace the weights",
        ),
        (("--out", "a.pth"), "must end in .safetensors"),
        (("--gather",), "--gather belongs to --to onnx"),
        (("--int8",), "--int8 belongs to --to onnx"),
        (("--to", "onnx", "--opset", "9"), "--opset 9 must be between"),
        (("--to", "coreml"), "invalid choice"),
    ],
)
def test_bad_requests_are_one_line_and_lose_nothing(command, made, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    Path("text.pth").write_text("not weights at all")
    Path("good.pth").write_bytes(made["votes"].read_bytes())
    torch.save(dict(models.create_model("eat_nano", 1).state_dict()), "bare.pth")
    save_file(dict(torch.load("good.pth")), "own.safetensors")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    words = {"--weights": ("good.pth",), "--to": ("safetensors",)}
    defaults = [word for name, value in words.items() if name not in options for word in (name, *value)]
    status, out, err = command(*defaults, *options)
    assert (status, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_other_architectures_are_refused(command, tmp_path):
    torch.save(timm.create_model("resnet18").state_dict(), tmp_path / "resnet.pth")
    status, _, err = command("--weights", tmp_path / "resnet.pth", "--to", "safetensors")
    assert status == 2
    assert "another network" in err


def test_packages_that_are_missing_are_named(command, made, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "PACKAGES", {"onnx": ("onnx", "no_such_package")})
    status, _, err = command("--weights", made["votes"], "--to", "onnx", "--out", tmp_path / "a.onnx")
    assert status == 2
    assert "--to onnx needs no_such_package: pip install -r requirements-export.txt" in err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": "resnet18"}, "its architecture is not one of eat_nano"),
        ({"num_classes": "ten"}, "num_classes must be a whole number"),
        ({"model_args": {"checkpoint_path": "/etc/passwd"}}, "unknown model_args checkpoint_path"),
        ({"num_classes": 3}, "misshapen"),
        ("not JSON", "cannot be read"),
    ],
)
def test_folders_of_others_are_refused_in_one_line(exported, tmp_path, change, message):
    source, folder = exported("votes", "hub")[0], tmp_path / "folder"
    folder.mkdir()
    (folder / "model.safetensors").symlink_to(source / "model.safetensors")
    config = json.loads((source / "config.json").read_text())
    (folder / "config.json").write_text(change if isinstance(change, str) else json.dumps(config | change))
    with pytest.raises(models.WeightsError, match=message) as error:
        models.create_model(folder)
    assert "\n" not in str(error.value)


def test_create_model_of_a_folder_has_its_own_outputs(exported):
    with pytest.raises(ValueError, match="has 10 outputs, not 1"):
        models.create_model(exported("votes", "hub")[0], num_classes=1)
    assert (
        models.create_model(exported("votes", "hub")[0], interest_points="batch").settings["interest_points"]
        == "batch"
    )


def test_example_of_the_docs_runs(exported, made, photographs, tmp_path, monkeypatch, capsys):
    text = (Path(__file__).parent.parent / "docs" / "exports.md").read_text()
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
