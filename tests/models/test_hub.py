"""Hub folders: a model for create_model and timm; a card that claims what is known and no more."""

import io
import json
import re

import pytest
import timm
import torch
import yaml
from helpers.networks import make_weights
from huggingface_hub import ModelCard
from PIL import Image

import export
import models
from iaa.exporting import description
from iaa.networks.trained_network import load_network

COMMAND = export


def by_timm(folder):
    return timm.create_model(f"local-dir:{folder}", pretrained=True)


@pytest.mark.parametrize("create", [models.create_model, by_timm])
def test_hub_folder_is_a_model_for_create_model_and_for_timm(exported, made, photographs, create):
    folder, _ = exported("score", "hub")
    trained = load_network(made["score"])
    images = description.evaluation_input(trained, photographs)
    network = create(folder).eval()
    if create is models.create_model:
        assert network.purpose.scale == (-3.0, 7.0)
    with torch.no_grad():
        assert torch.equal(network(images), trained.model(images))
    transform = timm.data.create_transform(**timm.data.resolve_data_config({}, model=network))
    pictures = [Image.open(io.BytesIO(file)).convert("RGB") for file in photographs]
    torch.testing.assert_close(torch.stack([transform(p) for p in pictures]), images, rtol=0, atol=1e-6)


def test_model_card_of_bare_weights_claims_neither_recipe_nor_metrics_nor_a_licence(exported):
    card = ModelCard.load(exported("votes", "hub")[0] / "README.md")
    assert (card.data.library_name, card.data.pipeline_tag) == ("timm", "image-classification")
    assert card.data.datasets == ["ava"]
    assert card.data.eval_results is None
    assert "Unknown: the weights were exported without their run." in card.text
    assert "no run beside the weights says what they reached" in card.text
    assert card.data.license is None  # the hub's field is that of the weights
    assert "The code is Apache-2.0. The licence of these weights follows from the data" in card.text


def test_the_example_of_a_model_card_scores_a_photograph(exported, made, photographs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = exported("score", "hub")[0]
    (tmp_path / "photo.jpg").write_bytes(photographs[0])
    code = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)[1]
    names = {}
    exec(compile(code.replace("hf-hub:OWNER/NAME", f"local-dir:{folder}"), "README.md", "exec"), names)
    trained = load_network(made["score"])
    with torch.no_grad():
        expected = trained.scores(trained.model(description.evaluation_input(trained, photographs[:1])))
    assert names["score"] == pytest.approx(expected.item(), abs=1e-4)


@pytest.fixture
def run_folder(tmp_path, made):
    """A run as main_nni.py leaves it, and its best.pth."""
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "best.pth").write_bytes(made["votes"].read_bytes())
    options = {"model": "eat_test", "dataset": "ava", "interest_points": "image"}
    options |= {"init_lr": 2e-5, "schedule": "cosine"}
    options |= {"path_to_images": "/home/somebody/AVA", "path_to_model_weight": "/home/somebody/dat.pth"}
    (folder / "options.json").write_text(json.dumps(options | {"decay_every": 5}))
    result = {"split": "test", "images": 77, "interest_points": "batch"}
    result |= {"srcc": 0.71234, "plcc": 0.7, "accuracy": None}
    (folder / "run.json").write_text(json.dumps({"status": "done", "result": result}))
    return folder


@pytest.fixture
def card_of(command, run_folder):
    """card_of(weights): the model card of an export of these weights of the run."""

    def export_and_load(weights="best.pth"):
        out = run_folder / "hub"
        words = (
            "--weights",
            run_folder / "checkpoints" / weights,
            "--to",
            "hub",
            "--out",
            out,
            "--overwrite",
        )
        assert command(*words)[0] == 0
        return ModelCard.load(out / "README.md")

    return export_and_load


def test_model_card_is_made_from_the_run(card_of, run_folder):
    card = card_of()
    assert card.data.eval_results is None  # they were measured with points of the batch
    for part in (
        "started from `dat.pth`",
        "| `init_lr` | 2e-05 |",
        "77 photographs",
        "Measured with interest points of the batch",
    ):
        assert part in card.text
    for part in ("somebody", "decay_every", "None", "| nan"):
        assert part not in card.text
    run = json.loads((run_folder / "run.json").read_text())
    run["result"]["interest_points"] = "image"
    (run_folder / "run.json").write_text(json.dumps(run))
    options = json.loads((run_folder / "options.json").read_text())
    (run_folder / "options.json").write_text(json.dumps(options | {"path_to_model_weight": "hf-hub:a/b@v1"}))
    card = card_of()
    assert "started from `hf-hub:a/b@v1`" in card.text
    results = {r.metric_type: r.metric_value for r in card.data.eval_results}
    assert results == {"spearmanr": 0.7123, "pearsonr": 0.7}
    assert yaml.safe_load((run_folder / "hub" / "README.md").read_text().split("---")[1])["model-index"]
    (run_folder / "options.json").write_text(json.dumps(options | {"tta": "flip"}))
    card = card_of()
    assert "Measured as the mean over photographs and their mirror images" in card.text
    assert card.data.eval_results is None


def test_model_card_claims_no_figures_of_other_weights_of_the_run(card_of, run_folder):
    (run_folder / "checkpoints" / "best.pth").rename(run_folder / "checkpoints" / "early.pth")
    text = card_of("early.pth").text
    assert "0.71" not in text
    assert "| `init_lr` | 2e-05 |" in text


def test_a_card_claims_nothing_of_weights_that_were_put_into_a_run(card_of, run_folder):
    options = json.loads((run_folder / "options.json").read_text())
    (run_folder / "options.json").write_text(json.dumps(options | {"interest_points": "grid"}))
    card = card_of()
    assert card.data.eval_results is None
    assert "Unknown: the weights were exported without their run." in card.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": "resnet18"}, "its architecture is not one of eat_nano"),
        ({"model_args": {"checkpoint_path": "/etc/passwd"}}, "unknown model_args 'checkpoint_path'"),
        ({"num_classes": 3}, "num_classes 3 is not that of model.safetensors"),
        ({"num_classes": 10**9}, "num_classes 1000000000 is not that of"),
        ({"model_args": {"depths": [2, 2, 2, 1000000]}}, "unknown model_args 'depths'"),
        ({"model_args": {"interest_points": "batch"}}, "interest_points is not that of model.safetensors"),
        ("[" * 100_000, "cannot be read"),
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
    with pytest.raises(ValueError, match="does not fit this network"):
        models.create_model(exported("votes", "hub")[0], num_classes=1)
    batched = models.create_model(exported("votes", "hub")[0], interest_points="batch")
    assert batched.purpose.settings["interest_points"] == "batch"


def test_plain_dat_is_exported_with_its_grid(command, tmp_path):
    make_weights(tmp_path / "dat.pth", points="grid", refinement="off")
    out = tmp_path / "dat_hub"
    status, said, err = command("--weights", tmp_path / "dat.pth", "--to", "hub", "--out", out)
    assert status == 0, err
    assert json.loads(said)["interest_points"] == "grid"
    assert models.create_model(out).purpose.settings["interest_points"] == "grid"
    assert "interest points: none: the centres of its cells" in (out / "README.md").read_text()
