"""What the tests share: the golden vectors, small made-up datasets, and a way to run main_nni.py in-process.

tests/test_gpu.py runs where several packages are missing: fixtures import their rooms themselves.
"""

import contextlib
import functools
import io
import json
import logging
import os
import shutil
import warnings
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

import main_nni
import models
import prepare_data
from helpers import eat_test  # noqa: F401  registers the network
from helpers.data import arguments, make_ava, make_pictures
from helpers.networks import GOLDEN, make_toy, make_weights

# Autograd's first backward decides whether it has threads, as beside a fake GPU; a forked process cannot go on with them.
torch.ones(1, requires_grad=True).sum().backward()


@pytest.fixture(autouse=True)
def quick_ends(monkeypatch):
    """Runs of this process need no exact intervals and no report.png, which took a tenth of a short run, where neither is the point.

    Returns the function that draws report.png.
    """
    from iaa.evaluation import bootstrap
    from iaa.reports.test_report import TestReport

    draw = TestReport.write_plots
    monkeypatch.setattr(bootstrap, "RESAMPLES", 100)
    monkeypatch.setattr(TestReport, "write_plots", lambda self, path, history=(): path.write_bytes(b""))
    return draw


@pytest.fixture(scope="session")
def golden():
    """The measured numbers of the released code, by name."""
    return load_file(GOLDEN / "toy_expected.safetensors")


@pytest.fixture(scope="session")
def golden_images(golden):
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
    return (golden["input/images"].float() / 255 - mean) / std


@pytest.fixture
def toy():
    """The golden network, with its weights."""
    return make_toy()


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """trained(**options): the result of a run on `ava`, made once; its folder is not to be changed."""
    folder, cache = make_ava(tmp_path_factory.mktemp("trained")), {}

    def get(**options):
        key = tuple(sorted(options.items()))
        if key not in cache:
            words = arguments(folder, **options | {"experiment_dir_name": folder / f"run{len(cache)}"})
            out = io.StringIO()
            logging.disable()
            with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out):
                patch.setattr(warnings, "showwarning", warnings.showwarning)
                patch.delenv("NNI_TRIAL_JOB_ID", raising=False)
                assert main_nni.main(words) == 0
            logging.disable(logging.NOTSET)
            cache[key] = json.loads(out.getvalue())
        return cache[key]

    return get


@pytest.fixture
def ran(ava, trained):
    """The result of a run whose folder is `ava / "run"`."""
    shutil.copytree(trained()["folder"], ava / "run")
    return trained()


@pytest.fixture
def ava(tmp_path):
    """A small AVA: folder with train, val and test CSVs of 12, 6 and 6 rows, and its images."""
    return make_ava(tmp_path)


@pytest.fixture
def scored(tmp_path):
    """A small TAD66K-style dataset: train.csv and test.csv with `image,score`, score 0 to 10."""
    rng = np.random.default_rng(2)
    for split, count in (("train", 12), ("test", 6)):
        names = [f"{split}{i}.jpg" for i in range(count)]
        table = pd.DataFrame({"image": names, "score": rng.uniform(1, 9, count).round(2)})
        table.to_csv(tmp_path / f"{split}.csv", index=False)
        make_pictures(tmp_path / "images", names)
    return tmp_path


@pytest.fixture
def run(capsys, monkeypatch):
    """Run main_nni in this process: run(argv) gives (exit status, last line's JSON or None, standard error)."""
    monkeypatch.delenv("NNI_TRIAL_JOB_ID", raising=False)
    monkeypatch.setattr(logging, "basicConfig", lambda **_: None)

    def go(argv):
        show = warnings.showwarning
        try:
            status = main_nni.main([str(word) for word in argv])
        except SystemExit as stop:
            status = stop.code
        finally:
            warnings.showwarning = show
        out, err = capsys.readouterr()
        return status, json.loads(out.strip().splitlines()[-1]) if status == 0 else None, err

    return go


@pytest.fixture
def command(capsys, monkeypatch, request):
    """Run prepare_data.py, or what the test's module names in COMMAND, in this process: (status, output, errors)."""
    monkeypatch.setattr("logging.basicConfig", lambda **_: None)
    program = getattr(request.module, "COMMAND", prepare_data)

    def go(*words):
        try:
            status = program.main([str(word) for word in words])
        except SystemExit as stop:
            status = stop.code
        return status, *capsys.readouterr()

    return go


@pytest.fixture
def weights(tmp_path):
    return make_weights(tmp_path / "w.pth")


@pytest.fixture
def album(tmp_path):
    """A folder of seven pictures, two of them in a folder below it."""
    make_pictures(tmp_path / "album", ["b.png", "a.jpg", "d.webp", "c.png", "e.bmp", "z/a.png", "z/b.png"])
    return tmp_path / "album"


@pytest.fixture(scope="session")
def photographs():
    from iaa.exporting import description

    return description.sample_photographs()


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """Weights files: `votes`, of AVA, points of each image; `score`, of a CSV's scores from -3 to 7, the grid's points."""
    folder, paths = tmp_path_factory.mktemp("weights"), {}
    for name, outputs, points in (("votes", 10, "image"), ("score", 1, "grid")):
        torch.manual_seed(3)
        network = models.create_model("eat_test", outputs, interest_points=points, refinement="scheduled")
        # Fresh weights give all photographs nearly the same score; with these they differ, as trained ones do.
        for parameter in network.stages.parameters():
            parameter.data.mul_(2)
        network.cls_head.weight.data.mul_(0.04)
        models.set_refinement(network, (0.5, 0.8))
        dataset, scale = ("ava", (1.0, 10.0)) if outputs == 10 else ("csv", (-3.0, 7.0))
        network.purpose = replace(network.purpose, model="eat_test", dataset=dataset, scale=scale)
        paths[name] = folder / f"{name}.pth"
        torch.save(network.state_dict(), paths[name])
    return paths


@pytest.fixture(scope="session")
def exported(made, tmp_path_factory):
    """One export of each form, made once for all workers: exported(weights, form) gives its path and what the command printed."""
    from filelock import FileLock

    import export

    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # all workers'

    def get(weights, form):
        name = weights + form
        out, said = folder / f"{name}{export.ENDINGS[form]}", folder / f"{name}.json"
        with FileLock(folder / f"{name}.lock"):
            if not said.exists():
                words = ["--weights", str(made[weights]), "--to", form, "--out", str(out)]
                said.write_text(json.dumps(export.export(export.parse(words))))
        return out, json.loads(said.read_text())

    return get


@pytest.fixture
def unoptimised(monkeypatch):
    """ONNX without the exporter's own optimiser, which takes half the time; `exported` files have been through it."""
    monkeypatch.setattr(torch.onnx, "export", functools.partial(torch.onnx.export, optimize=False))
