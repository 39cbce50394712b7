"""A network of timm's beside EAT: trained, resumed, evaluated, used and exported by the same commands, with its own input."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from helpers.data import arguments, make_pictures
from helpers.runs import metrics, refused, stop_after_an_epoch, two_processes
from PIL import Image

import export
import models
import option
import predict
from benchmarks import ablation
from iaa.errors import InputError
from iaa.exporting.description import describe
from iaa.networks.trained_network import load_network
from iaa.scoring.table import read_rows
from iaa.searching.space import read_space
from iaa.training import build
from iaa.training.steps import make_optimizer

RESNET, VIT = NETWORKS = ("timm/test_resnet", "timm/test_vit")
LEARN = {"init_lr": 1e-3, "num_epoch": 2, "batch_size": 2, "drop_path_rate": 0.3, "optimizer": "adamw"}
CPU = ("--gpu_id", "cpu", "--num_workers", "0")


def predictions(result):
    return pd.read_csv(result["files"]["predictions"])


def by_hand(network, paths):
    """Raw outputs for pictures: PIL's bicubic resize to the network's 160 pixels, then its own mean and deviation, 0.5."""
    pixels = [np.asarray(Image.open(path).convert("RGB").resize((160, 160), Image.BICUBIC)) for path in paths]
    images = torch.tensor(np.stack(pixels)).permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        return network.eval()((images - 0.5) / 0.5).numpy()


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_a_run_scores_by_the_networks_own_input_and_eval_needs_no_options(ava, run, trained, name):
    result = trained(model=name, **LEARN)
    assert (result["model"], result["interest_points"], result["refinement"]) == (name, None, None)
    network = timm.create_model(name.removeprefix("timm/"), num_classes=10)
    network.load_state_dict(torch.load(result["files"]["best"], weights_only=True))
    found = predictions(result)
    paths = [Path(result["folder"]).parent / "images" / image for image in found["image"]]
    columns = [f"output{level}" for level in range(1, 11)]
    np.testing.assert_allclose(found[columns], by_hand(network, paths), atol=2e-6)
    assert found["predicted_score"].std() > 1e-3
    given = {"path_to_model_weight": result["files"]["best"], "experiment_dir_name": ava / "e"}
    given["report_images"] = None
    status, evaluated, err = run(arguments(ava, model=None, eval=True, batch_size=2, **given))
    assert status == 0, err
    assert evaluated["model"] == name
    assert metrics(evaluated) == metrics(result)
    assert (ava / "e" / "report.html").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_a_resumed_run_ends_as_an_uncut_one(ava, run, trained, monkeypatch, name):
    whole = trained(model=name, **LEARN)
    with monkeypatch.context() as patch:
        stop_after_an_epoch(patch)
        assert run(arguments(ava, model=name, **LEARN))[0] == 130
    status, resumed, err = run(["--resume", "--experiment_dir_name", ava / "run"])
    assert status == 0, err
    assert metrics(resumed) == metrics(whole)
    states = [torch.load(one["files"]["last"], weights_only=True)["model"] for one in (whole, resumed)]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_bf16_and_checkpointed_blocks_train_nearly_the_same(trained, name):
    plain = trained(model=name, num_epoch=1, init_lr=1e-3)
    for other in ({"amp": "bf16"}, {"grad_checkpoint": True}):
        result = trained(model=name, num_epoch=1, init_lr=1e-3, **other)
        columns = [predictions(one)["output5"].to_numpy() for one in (plain, result)]
        np.testing.assert_allclose(columns[1], columns[0], atol=0.1)
        if "amp" in other:
            assert (columns[0] != columns[1]).any()


def test_a_network_without_checkpointing_says_so(monkeypatch):
    class Refusing(torch.nn.Module):
        def set_grad_checkpointing(self, enable=True):
            assert not enable, "gradient checkpointing not supported"

    given = {"path_to_images": "a", "path_to_save_csv": "b", "model": "timm/x", "grad_checkpoint": True}
    options = option.complete(given)
    for network in (torch.nn.Linear(1, 1), Refusing()):
        monkeypatch.setattr(build, "create_model", lambda *_, network=network, **__: network)
        with pytest.raises(InputError, match="--grad_checkpoint: timm/x has no such way"):
            build.make_model(options, None, models.Purpose(), 1, torch.device("cpu"))


def test_the_optimiser_spares_what_timm_says_of_a_network():
    for name, spared in ((VIT, {"pos_embed", "cls_token", "reg_token"}), (RESNET, set())):
        model = models.create_model(name)
        decayed = make_optimizer(model, "adamw", 0.05).param_groups[0]["params"]
        names = {key for key, value in model.named_parameters() if any(value is one for one in decayed)}
        assert not names & spared
        assert names == {k for k, v in model.named_parameters() if v.ndim > 1} - spared


@pytest.mark.slow
@pytest.mark.parametrize("outputs", [1000, 10])
def test_imagenets_file_is_a_start_and_its_head_is_told_of(ava, run, outputs, caplog):
    caplog.set_level("INFO")
    (ava / "hub").mkdir()
    source = timm.create_model("test_resnet", num_classes=outputs)
    torch.save(source.state_dict(), ava / "hub" / "pytorch_model.bin")
    given = {"path_to_model_weight": f"local-dir:{ava / 'hub'}", "init_lr": 1e-12}
    assert run(arguments(ava, model=RESNET, **given))[0] == 0
    told = "pytorch_model.bin has none that fit: fc.bias, fc.weight start fresh" in caplog.text
    assert told == (outputs == 1000)
    state = torch.load(ava / "run" / "checkpoints" / "best.pth", weights_only=True)
    torch.testing.assert_close(state["conv1.0.weight"], source.state_dict()["conv1.0.weight"])
    if outputs == 1000:
        given["experiment_dir_name"] = ava / "e"
        status, _, err = run(arguments(ava, model=RESNET, eval=True, **given))
        assert status == 2
        assert "pytorch_model.bin: has 1000 outputs, and networks for ava have 10" in err


@pytest.mark.slow
def test_pretrained_weights_are_fetched_once(ava, run, monkeypatch):
    asked, create = [], timm.create_model

    def fetch(name, pretrained=False, **settings):
        asked.append(pretrained)
        return create(name, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(timm, "create_model", fetch)
        stop_after_an_epoch(patch)
        assert run(arguments(ava, model=RESNET, pretrained=True, num_epoch=2))[0] == 130
    with monkeypatch.context() as patch:
        patch.setattr(timm, "create_model", fetch)
        assert run(["--resume", "--experiment_dir_name", ava / "run"])[0] == 0
    assert asked == [True, False]


def test_pretrained_weights_without_a_network_are_one_line(ava, run, monkeypatch):
    def fail(name, pretrained=False, **settings):
        raise OSError("no route to host")

    monkeypatch.setattr(timm, "create_model", fail)
    told = "its weights cannot be fetched (no route to host); load a weights file instead"
    refused(run, ava, told, model=RESNET, pretrained=True)


EATS_OWN = (
    {"interest_points": "image"},
    {"refinement": "off"},
    {"explore_share": 0.3},
    {"handover": "step"},
    {"save_released_style": True},
)


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"model": "timm/test_resnett"}, ("the nearest are test_resnet, ",)),
        ({"model": "resnet50"}, ("--model resnet50: choose from eat_nano", "timm/NAME")),
        ({"model": "eat_test", "pretrained": True}, ("--pretrained belongs to --model timm/NAME",)),
        ({"pretrained": True, "path_to_model_weight": "x.pth"}, ("exclude each other",)),
        *((o, (f"--{next(iter(o))} belongs to --model eat_*, not timm/test_resnet",)) for o in EATS_OWN),
    ],
)
def test_what_does_not_go_together_is_one_line(ava, run, options, parts):
    refused(run, ava, *parts, **{"model": RESNET} | options)


def test_weights_of_another_architecture_are_one_line(ava, run, trained, command_of):
    weights = trained(model=VIT, **LEARN)["files"]["best"]
    refused(run, ava, "best.pth does not fit this network", model=RESNET, path_to_model_weight=weights)
    refused(run, ava, "best.pth does not fit this network", path_to_model_weight=weights)
    for program in (predict, export):
        words = [ava / "images"] * (program is predict) + ["--to", "safetensors"] * (program is export)
        status, _, err = command_of(program, *words, "--weights", weights, "--model", RESNET)
        assert status == 2
        assert f"{weights}: its model is {VIT}, not {RESNET}" in err


@pytest.fixture
def command_of(capsys, monkeypatch):
    """command_of(program, *words): a command in this process; (status, output, errors)."""
    monkeypatch.setattr("logging.basicConfig", lambda **_: None)

    def go(program, *words):
        status = program.main([str(word) for word in words])
        return status, *capsys.readouterr()

    return go


@pytest.mark.parametrize("name", NETWORKS)
def test_predict_and_scorer_give_the_evaluations_scores(tmp_path, trained, command_of, name):
    result = trained(model=name, **LEARN)
    found, weights = predictions(result), result["files"]["best"]
    paths = [Path(result["folder"]).parent / "images" / image for image in found["image"]]
    out, page = tmp_path / "scores.csv", tmp_path / "page.html"
    words = (*paths, "--weights", weights, "--out", out, "--report", page, *CPU)
    status, _, err = command_of(predict, *words)
    assert status == 0, err
    rows = list(read_rows(out))
    assert [row["score"] for row in rows] == pytest.approx(found["predicted_score"], abs=1e-5)
    assert "attention_background" not in rows[0]
    assert '"attention_limit": null' in page.read_text()
    words = (*paths, "--weights", weights, "--out", out, *CPU)
    status, _, err = command_of(predict, *words, "--append", "--report", tmp_path / "again.html")
    assert status == 0, err
    scorer = predict.Scorer(weights, device="cpu")
    assert scorer(paths) == pytest.approx(found["predicted_score"], abs=1e-5)
    # A tensor is not rounded to 8 bits after its resize.
    picture = torch.tensor(np.asarray(Image.open(paths[0]))).permute(2, 0, 1) / 255
    assert scorer(picture[None]).item() == pytest.approx(scorer(paths[0]), abs=0.02)


@pytest.mark.parametrize(
    "words", [("--explain", "why"), ("--report", "p.html", "--layer", "stages.2.attns.1")]
)
def test_there_is_nowhere_to_look(tmp_path, trained, command_of, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    weights = trained(model=RESNET, **LEARN)["files"]["best"]
    make_pictures(tmp_path / "a", ["1.png"])
    status, _, err = command_of(predict, "a", "--weights", weights, *words, *CPU)
    assert status == 2
    named = words[-2]
    assert err == f"predict.py: {named}: timm/test_resnet has no deformable layers; leave it out\n"
    assert not (tmp_path / "why").exists()


def test_a_bare_file_needs_the_networks_name(tmp_path):
    torch.save(dict(timm.create_model("test_vit", num_classes=10).state_dict()), tmp_path / "w.pth")
    with pytest.raises(InputError, match=r"w\.pth: has no head of EAT .*its model must be stated"):
        predict.Scorer(tmp_path / "w.pth")
    scorer = predict.Scorer(tmp_path / "w.pth", model=VIT, device="cpu")
    assert scorer.trained.model.img_size == 160
    with pytest.raises(InputError, match=r"w\.pth: timm/test_vit has no interest points"):
        predict.Scorer(tmp_path / "w.pth", model=VIT, interest_points="image")


@pytest.mark.usefixtures("unoptimised")
@pytest.mark.parametrize(("name", "form"), [(VIT, "onnx"), (VIT, "safetensors")])
@pytest.mark.slow
def test_exports_are_equal_to_the_network_and_say_its_input(tmp_path, trained, command_of, name, form):
    if form == "onnx":
        pytest.importorskip("onnxruntime", reason="requirements/export.txt")
    out = tmp_path / f"x{export.ENDINGS[form]}"
    weights = trained(model=name, **LEARN)["files"]["best"]
    status, said, err = command_of(export, "--weights", weights, "--to", form, "--out", out)
    assert status == 0, err
    assert json.loads(said)["largest_difference"]["prediction"] < 1e-4
    about = describe(load_network(weights))
    assert about["preprocessing"]["mean"] == about["preprocessing"]["std"] == [0.5] * 3
    assert about["preprocessing"]["resize"]["height"] == 160
    assert (about["model"], about["interest_points"], about["depends_on_batch"]) == (name, None, False)


def test_searches_and_ablations_may_set_the_network(tmp_path):
    (tmp_path / "space.json").write_text(json.dumps({"model": {"_type": "choice", "_value": [RESNET]}}))
    assert read_space(str(tmp_path / "space.json"))["model"]["_value"] == [RESNET]
    assert option.check_tuned({"model": VIT}) == {"model": VIT}
    name, settings = ablation.parse_setting(f"model={VIT}")
    assert settings == {"model": VIT}
    assert "/" not in name


@pytest.mark.slow
def test_two_processes_train_one_network(ava, run):
    given = {"init_lr": 1e-3, "batch_size": 2, "eval_batch_size": 4, "ema_decay": 0.5}
    status, result, err = two_processes(ava, arguments(ava, model=RESNET, **given))
    assert status == 0, err
    for a, b in zip(*(torch.load(ava / f"{rank}.pt") for rank in (0, 1)), strict=True):
        assert all(torch.equal(a[key], b[key]) for key in a)
    weights = result["files"]["best"]
    words = {"eval": True, "path_to_model_weight": weights, "eval_batch_size": 4, "model": None}
    _, alone, _ = run(arguments(ava, **words, experiment_dir_name=ava / "alone"))
    assert metrics(result) == pytest.approx(metrics(alone), rel=1e-6, nan_ok=True)


def test_a_hub_folder_is_read_by_timm_and_by_scorer(tmp_path, trained, command_of):
    result = trained(model=RESNET, **LEARN)
    folder = tmp_path / "net_hub"
    words = ("--weights", result["files"]["best"], "--to", "hub", "--out", folder)
    status, _, err = command_of(export, *words)
    assert status == 0, err
    found = predictions(result)
    paths = [Path(result["folder"]).parent / "images" / image for image in found["image"]]
    assert predict.Scorer(folder, device="cpu")(paths) == pytest.approx(found["predicted_score"], abs=1e-5)
    network = timm.create_model(f"local-dir:{folder}", pretrained=True)
    config = timm.data.resolve_data_config({}, model=network)
    assert (config["input_size"], config["mean"], config["crop_mode"]) == ([3, 160, 160], [0.5] * 3, "squash")
    card = (folder / "README.md").read_text()
    assert "timm's network `test_resnet`, with a head that scores" in card
    assert 'timm.create_model("hf-hub:OWNER/NAME", pretrained=True)' in card
    assert "interest points:" not in card
    assert "models.create_model" not in card
