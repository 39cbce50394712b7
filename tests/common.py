"""What the tests share: the golden vectors, small made-up datasets, and a way to run main_nni.py in-process."""

import contextlib
import functools
import io
import json
import logging
import os
import shutil
import sys
import traceback
import warnings
from dataclasses import replace
from multiprocessing import forkserver
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import small  # from here on eat_nano is SMALL
import torch
from filelock import FileLock
from PIL import Image
from safetensors.torch import load_file
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

import export
import main_nni
import models
import prepare_data
from iaa.evaluation import bootstrap
from iaa.exporting import check
from iaa.reports import test_report

GOLDEN = Path(__file__).parent / "golden"
AVA_COLUMNS = ["image_id", *(f"score{i}" for i in range(2, 12))]

# Autograd's first backward decides whether it has threads, as beside a fake GPU; a forked process cannot go on with them.
torch.ones(1, requires_grad=True).sum().backward()

DRAW = test_report.TestReport.write_plots


@pytest.fixture(autouse=True)
def quick_ends(monkeypatch):
    """Runs of this process need no exact intervals and no report.png, which took a tenth of a short run, where neither is the point."""
    monkeypatch.setattr(bootstrap, "RESAMPLES", 100)
    monkeypatch.setattr(
        test_report.TestReport, "write_plots", lambda self, path, history=(): path.write_bytes(b"")
    )


@pytest.fixture
def nano(monkeypatch):
    """eat_nano as users have it, and programs that are started."""
    monkeypatch.setattr(models.variants, "NANO", small.NANO)


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


def make_toy(**overrides):
    config = json.loads((GOLDEN / "toy_config.json").read_text())
    model = models.create_model("eat_nano", **(config | overrides))
    if not overrides:
        models.load_weights(model, GOLDEN / "toy_weights.safetensors")
    return model.eval()


def make_pictures(folder: Path, names, size=(48, 40), seed=0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(folder / name)


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


def make_ava(tmp_path: Path) -> Path:
    rng = np.random.default_rng(1)
    start = 100
    for split, count in (("train", 12), ("val", 6), ("test", 6)):
        ids = range(start, start + count)
        rows = [[i, *rng.integers(0, 30, 10)] for i in ids]
        pd.DataFrame(rows, columns=AVA_COLUMNS).to_csv(tmp_path / f"{split}.csv", index=False)
        make_pictures(tmp_path / "images", [f"{i}.jpg" for i in ids], seed=start)
        start += count
    return tmp_path


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


def arguments(folder: Path, dataset: str = "ava", **options) -> list[str]:
    """A command line for a short CPU run on `folder`. True stands for a flag, None leaves an option out.

    --eval writes no page where nobody asks for one by report_images=None, its default: drawing takes half the time.
    """
    options = {
        "report_images": 0 if options.get("eval") else None,
        "dataset": dataset,
        "path_to_images": folder / "images",
        "path_to_save_csv": folder,
        "experiment_dir_name": folder / "run",
        "model": "eat_nano",
        "num_epoch": 1,
        "batch_size": 6,
        "num_workers": 0,
        "gpu_id": "cpu",
    } | options
    words = []
    for name, value in options.items():
        if value is not None:
            words += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    return words


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


def fork(work, output=os.devnull) -> int:
    """Do it in a process of its own that leads a group, sooner than a new interpreter would start; its number."""
    if child := os.fork():
        return child
    os.setsid()
    status = 70
    try:
        torch.set_num_threads(1)  # those of before did not come along
        forkserver._forkserver.__init__()  # a process of its own has a server of its own
        sys.stdout = sys.stderr = open(output, "w")  # noqa: SIM115  ends with the process
        status = work()
        sys.stderr.flush()
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(status or 0)


def ended(child: int) -> int:
    """The exit status of a forked process, or the negative number of the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def make_weights(
    path, outputs=10, dataset="ava", points="image", refinement="released", bare=False, seed=0, scale=(1, 10)
):
    """A small network whose scores differ between pictures; bare: as a released file, with tensors only."""
    torch.manual_seed(seed)
    model = models.create_model("eat_nano", outputs, interest_points=points, refinement=refinement)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name.endswith(("ref_point14.weight", "conv_offset.3.weight")):
                value.mul_(10)
        model.cls_head.weight.mul_(0.2)
        model.cls_head.bias.fill_(1 / outputs)
    if points == "running":
        models.calibrate_points(model, [torch.randn(8, 3, 224, 224)])
    model.purpose = replace(model.purpose, model="eat_nano", dataset=dataset, scale=tuple(scale))
    torch.save(models.released_style(model) if bare else model.state_dict(), path)
    return path


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
    return check.sample_photographs()


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """Weights files: `votes`, of AVA, points of each image; `score`, of a CSV's scores from -3 to 7, running points."""
    folder, paths = tmp_path_factory.mktemp("weights"), {}
    for name, outputs, points in (("votes", 10, "image"), ("score", 1, "running")):
        torch.manual_seed(3)
        network = models.create_model("eat_nano", outputs, interest_points=points, refinement="scheduled")
        # Fresh weights give all photographs nearly the same score; with these they differ, as trained ones do.
        for parameter in network.stages.parameters():
            parameter.data.mul_(2)
        network.cls_head.weight.data.mul_(0.04)
        if points == "running":
            models.calibrate_points(network, [torch.randn(2, 3, 224, 224)])
        models.set_refinement(network, (0.5, 0.8))
        dataset, scale = ("ava", (1.0, 10.0)) if outputs == 10 else ("csv", (-3.0, 7.0))
        network.purpose = replace(network.purpose, model="eat_nano", dataset=dataset, scale=scale)
        paths[name] = folder / f"{name}.pth"
        torch.save(network.state_dict(), paths[name])
    return paths


@pytest.fixture(scope="session")
def exported(made, tmp_path_factory):
    """One export of each form, made once for all workers: exported(weights, form) gives its path and what the command printed."""
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
