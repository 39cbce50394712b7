"""Weights by name: of the Hugging Face hub, by a stand-in of it on the loopback, and of the folder `weights/`."""

import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from helpers.data import arguments, make_pictures
from helpers.hub import COMMIT, Hub, serve
from helpers.networks import make_weights
from huggingface_hub import constants

import export
import hubconf
import models
import predict
from iaa.scoring import Scorer
from models import names

ROOT = Path(__file__).parents[2]
COMMAND = predict
NOTE = "perceived quality, learned from BIQ2021, not beauty"
NAME = "hf-hub:owner/name"


@pytest.fixture
def repository(exported):
    """What a hub folder has, and what other people's repositories have beside it."""
    files = {path.name: path.read_bytes() for path in exported("score", "hub")[0].iterdir()}
    return Hub("owner/name", files | {"pytorch_model.bin": b"pickle", "training.csv": b"a,b"})


@pytest.fixture
def hub(repository, tmp_path, monkeypatch):
    """The hub is the stand-in, its cache is empty; hub.leave() takes it from the net."""

    def ask(address):
        url = f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url)

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    repository.leave = lambda: ask("http://127.0.0.1:9")  # nobody listens there
    with serve(repository) as address:
        ask(address)
        yield repository


def tensors(state):
    return {name: value.numpy().tobytes() for name, value in state.items()}


@pytest.mark.parametrize("suffix", ["", "@v1", f"@{COMMIT}"])
def test_weights_of_the_hub_are_those_of_the_folder_and_stay_without_the_hub(hub, exported, suffix):
    local = models.read_weights(exported("score", "hub")[0])
    for _ in range(2):
        weights = models.read_weights(NAME + suffix)
        assert tensors(weights.state) == tensors(local.state)
        assert weights.purpose == local.purpose
        hub.leave()
    assert set(hub.fetched) == {"config.json", "model.safetensors"}


def test_every_door_takes_a_name_of_the_hub(hub, made, tmp_path):
    make_pictures(tmp_path, ["a.png"])
    expected = Scorer(made["score"], device="cpu")(tmp_path / "a.png")
    for scorer in (Scorer(NAME, device="cpu"), hubconf.scorer(NAME, device="cpu")):
        assert scorer(tmp_path / "a.png") == expected
    state = tensors(models.read_weights(made["score"]).state)
    for create in (models.create_model, lambda name: timm.create_model(name, pretrained=True)):
        assert tensors(create(NAME).state_dict()) == state
    network = models.create_model("eat_test", 1, interest_points="grid", refinement="scheduled")
    models.load_weights(network, NAME)
    assert tensors(network.state_dict()) == state


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("hf-hub:owner/other", "no such repository, or a private one, for which HF_TOKEN must be set"),
        (f"{NAME}@v2", "the repository has no such revision"),
        ("hf-hub:owner/name/more", "cannot be fetched (HFValidationError"),
    ],
)
def test_what_the_hub_does_not_have_is_one_line(hub, command, tmp_path, name, problem):
    make_pictures(tmp_path, ["a.png"])
    status, out, err = command(tmp_path / "a.png", "--weights", name)
    assert (status, out) == (2, "")
    assert f"predict.py: {name}: {problem}" in err
    assert err.count("\n") == 1


def test_without_hub_and_cache_one_line_says_so(hub):
    hub.leave()
    with pytest.raises(
        models.WeightsError, match="the hub cannot be reached or fails, and its cache"
    ) as error:
        models.read_weights(NAME)
    assert "\n" not in str(error.value)


def test_a_repository_without_known_weights_is_named(hub):
    del hub.files["model.safetensors"]
    with pytest.raises(models.WeightsError, match=rf"{NAME}: a folder without model.safetensors"):
        models.read_weights(NAME)


@pytest.mark.slow
def test_predict_uses_the_cache_when_the_hub_is_gone(exported, tmp_path):
    """As a user has it, by the environment."""
    make_pictures(tmp_path / "photos", ["a.png"])
    script = f"""
import os, pathlib, sys
sys.path.insert(0, "tests")
from helpers.hub import Hub, serve
files = {{path.name: path.read_bytes() for path in pathlib.Path({str(exported("score", "hub")[0])!r}).iterdir()}}
with serve(Hub("owner/name", files)) as address:
    os.environ |= {{"HF_ENDPOINT": address, "HF_HOME": {str(tmp_path / "home")!r}}}
    from helpers import eat_test
    import predict
    words = [{str(tmp_path / "photos")!r}, "--weights", {NAME!r}, "--gpu_id", "cpu", "--num_workers", "0"]
    assert predict.main(words) == 0
assert predict.main(words) == 0
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first, again = done.stdout.splitlines()[::2]
    assert first == again
    for noise in ("HTTP", "Fetching"):
        assert noise not in done.stderr


@pytest.fixture(scope="module")
def file_to_ship(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shipped")
    weights = make_weights(folder / "w.pth", outputs=1, dataset="csv", scale=(0, 1))
    out = folder / "eat_test_biq2021.safetensors"
    words = ["--weights", str(weights), "--to", "safetensors", "--out", str(out), "--note", NOTE]
    assert export.export(export.parse(words))["score_range"] == [0, 1]
    return out


@pytest.fixture
def shipped(tmp_path, monkeypatch, file_to_ship):
    """The network biq2021 of the folder `weights/`, made by export.py; the working folder is another one."""
    monkeypatch.setattr(names, "SHIPPED", file_to_ship.parent)
    monkeypatch.chdir(tmp_path)
    return file_to_ship


def test_a_network_of_the_weights_folder_is_used_by_its_name_and_says_what_it_scores(
    shipped, command, caplog
):
    caplog.set_level(logging.INFO)
    make_pictures(Path("photos"), ["a.png"])
    status, out, _ = command("photos", "--weights", "biq2021", "--gpu_id", "cpu", "--num_workers", 0)
    assert status == 0
    assert caplog.messages.count(NOTE) == 1
    scorer = hubconf.scorer("biq2021", device="cpu")
    assert scorer.trained.notes == [NOTE]
    assert f"{scorer('photos/a.png'):.4f}" in out
    assert scorer.trained.path == shipped


def test_the_shipped_network_is_evaluated_with_its_note(shipped, scored, run, caplog):
    caplog.set_level(logging.INFO)
    given = {"path_to_model_weight": "biq2021", "score_min": 0, "score_max": 10, "model": None}
    status, _, err = run(arguments(scored, "csv", eval=True, **given))
    assert status == 0, err
    assert caplog.messages.count(NOTE) == 1


def test_a_file_of_the_very_name_is_meant_before_the_name(shipped):
    assert models.read_weights("biq2021").path == shipped
    shutil.copy(shipped.with_name("w.pth"), "biq2021")
    weights = models.read_weights("biq2021")
    assert weights.path == Path("biq2021")
    assert weights.purpose.note is None


def test_a_misspelt_name_is_answered_with_the_nearest(shipped):
    for word in ("BIQ2021", "biq2012"):
        with pytest.raises(models.WeightsError, match=f"{word}: no such weights file; did you mean biq2021?"):
            models.read_weights(word)


@pytest.mark.parametrize(
    ("name", "file"), [("biq2021", "biq2021.safetensors"), (f"{NAME}@v1", "name@v1.safetensors")]
)
def test_an_export_of_named_weights_lies_in_the_working_folder(shipped, hub, name, file):
    written = export.export(export.parse(["--weights", name, "--to", "safetensors"]))["written"]
    assert written == str(Path.cwd() / file)
    assert models.read_weights(written).purpose.note == (NOTE if name == "biq2021" else None)


def test_the_file_to_ship_holds_no_names_and_no_labels(trained, tmp_path):
    """Of the photographs it has hashes of names alone, by which tests know them again."""
    run = Path(trained()["folder"])
    out = tmp_path / "eat_test_mine.safetensors"
    export.export(
        export.parse(["--weights", str(run), "--to", "safetensors", "--out", str(out), "--note", NOTE])
    )
    content = out.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
    assert set(header) == {"format", "eat", "about"}
    assert set(json.loads(header["eat"])) == {"settings", "purpose", "photographs"}
    assert set(json.loads(header["eat"])["photographs"]) == {"trained", "selected"}
    options = json.loads((run / "options.json").read_text())
    for private in (options["path_to_images"], options["path_to_save_csv"], "101.jpg", "train.csv"):
        assert private.encode() not in content
    assert models.read_weights(out).purpose.note == NOTE


def test_fine_tuned_weights_do_not_inherit_the_note(shipped, scored, run):
    status, _, err = run(arguments(scored, "csv", path_to_model_weight="biq2021", score_min=0, score_max=10))
    assert status == 0, err
    assert models.read_weights("run").purpose.note is None


def test_a_note_of_several_lines_is_refused(shipped, made, tmp_path):
    words = ["--weights", str(made["score"]), "--to", "safetensors", "--out", str(tmp_path / "x.safetensors")]
    with pytest.raises(models.WeightsError, match="is not a line of text"):
        export.export(export.parse([*words, "--note", "two\nlines"]))
    assert not (tmp_path / "x.safetensors").exists()


def test_a_network_of_timm_says_its_note(tmp_path, caplog):
    state = models.create_model("timm/resnet10t", 1).state_dict()
    state._metadata[""]["purpose"] = {"model": "timm/resnet10t", "dataset": "aadb", "note": NOTE}
    torch.save(state, tmp_path / "w.pth")
    assert Scorer(tmp_path / "w.pth", device="cpu").trained.notes == [NOTE]
