"""The report of a GPU: rehearsed on the CPU, resumed, refused, kept within its budget; its parts alone."""

import functools
import inspect
import itertools
import json
import multiprocessing
import os
import signal
import time
from multiprocessing import forkserver

import pytest
import torch

from benchmarks import gpu_parts, gpu_report, gpu_speed, gpu_worker
from benchmarks.gpu_worker import NotRun, Part, Setup, Worker
from models import create_model
from photographs import workers

CPU = torch.device("cpu")


class Here:
    """Does the parts in this process, which is faster."""

    def __init__(self, setup):
        self.setup = setup

    def run(self, part):
        done.append(part.name)
        return {"part": part.name, "seconds": 0.0} | gpu_worker.work(part, self.setup)

    def end(self):
        pass


done = []  # parts, in turn


@pytest.fixture(scope="module")
def served():
    """Other processes come from a server that has imported what they need, sooner than a new interpreter has."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workers, "PRELOAD", ["benchmarks.gpu_parts", "small"])
        patch.setattr(gpu_worker, "START", "forkserver")
        forked = functools.partial(torch.multiprocessing.start_processes, start_method="forkserver")
        patch.setattr(torch.multiprocessing, "spawn", forked)
        forkserver._forkserver._stop()  # it has other modules
        workers.start_server()
        yield
    forkserver._forkserver._stop()


@pytest.fixture
def report(tmp_path, monkeypatch, capsys):
    """Run the report of these parts in this process: report(*words, parts=...) gives (status, standard error)."""
    monkeypatch.setattr("logging.basicConfig", lambda **_: None)

    def go(*words, parts=(), worker=Here):
        done.clear()
        monkeypatch.setattr(gpu_report, "plan", lambda setup: list(parts))
        monkeypatch.setattr(gpu_report, "Worker", worker)
        status = gpu_report.main(["--out", str(tmp_path / "r"), *words])
        return status, capsys.readouterr().err

    return go


def number(setup, value=1):
    return {"value": value}


def broken(setup):
    raise RuntimeError("a kernel\nof ours | is wrong")


def lacking(setup):
    import no_such_package  # noqa: F401


def not_here(setup):
    raise NotRun("one GPU")


def killed(setup):
    os.kill(os.getpid(), signal.SIGKILL)


def crash(setup):
    os._exit(3)


def process(setup):
    return {"pid": os.getpid()}


def hang(setup):
    time.sleep(60)


def saved(folder, name):
    return json.loads((folder / "r" / "parts" / f"{name}.json").read_text())


@pytest.mark.slow
def test_rehearsal_measures_every_part_and_a_second_call_none(tmp_path, capfd, served):
    words = ["--out", str(tmp_path), "--device", "cpu", "--rehearse"]
    assert gpu_report.main(words) == 0
    records = {path.stem: json.loads(path.read_text()) for path in (tmp_path / "parts").iterdir()}
    found = {name: record["status"] for name, record in records.items()}
    assert {name for name, status in found.items() if status != "done"} == {"loader-gpu", "two_processes"}, (
        records
    )
    assert found["two_processes"] == "not run"
    assert all(row["right"] for row in records["golden"]["result"]["rows"])
    assert records["bf16"]["result"]["srcc_between"] > 0.9
    assert set(records["ways-eat_nano-bf16"]["result"]["fastest"])
    assert len(records["kernels-eat_nano-training"]["result"]["rows"]) == 10
    assert records["speed-eat_nano-training-bf16-2"]["result"]["ratio"] > 0
    assert records["speed-eat_nano-training-float32-2"]["result"]["tflops"] > 0
    pages = [(tmp_path / name).read_text() for name in ("report.md", "report.html")]
    for title in (
        "Verdicts",
        "Throughput",
        "Ways of attention",
        "The dearest kernels",
        "Memory",
        "bf16 beside float32",
    ):
        assert all(title in page for page in pages)
    before = {
        path: path.stat().st_mtime_ns for path in (tmp_path / "parts").iterdir() if found[path.stem] == "done"
    }
    capfd.readouterr()
    assert gpu_report.main([*words, "--budget", "0"]) == 0
    assert before == {path: path.stat().st_mtime_ns for path in before}
    assert capfd.readouterr().out.count("not measured: ") == 7  # a CPU reaches no goal


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_every_part_of_the_plan_can_be_called(tmp_path, device):
    setup = Setup(torch.device(device), tmp_path, tmp_path, reference=tmp_path)
    parts = gpu_report.plan(setup)
    for part in parts:
        inspect.signature(part.work).bind(setup, **part.given)
    names = [part.name for part in parts]
    assert len(set(names)) == len(names)
    assert names[0] == "golden"
    first = parts[next(i for i, name in enumerate(names) if "compiled" in name)]
    assert (first.given["model"], first.given["plain"]) == ("eat_base", True)
    assert names.index("ways-eat_base-bf16") < names.index(next(n for n in names if n.startswith("speed")))
    keys = ("model", "precision", "compiled", "training")
    measured = {tuple(part.given[key] for key in keys) for part in parts if part.work is gpu_speed.speed}
    for case in itertools.product(
        ("eat_tiny", "eat_base", "eat_base_384"), ("bf16",), (False, True), (False, True)
    ):
        assert case in measured


def test_killed_between_parts_it_goes_on_with_the_rest(report, tmp_path):
    parts = [Part("first", process), Part("second", killed), Part("third", process)]
    context = multiprocessing.get_context("fork")
    other = context.Process(target=report, args=("--device", "cpu"), kwargs={"parts": parts})
    other.start()
    other.join()
    assert other.exitcode == -signal.SIGKILL
    assert (tmp_path / "r" / "report.html").is_file()
    parts[1] = Part("second", number, {"value": 2})
    assert report("--device", "cpu", parts=parts)[0] == 0
    assert done == ["second", "third"]
    assert saved(tmp_path, "first")["result"] == {"pid": other.pid}
    assert saved(tmp_path, "second")["result"] == {"value": 2}


@pytest.mark.slow
def test_a_failing_part_is_recorded_and_does_not_end_the_rest(report, tmp_path):
    parts = [Part("one", broken), Part("two", lacking), Part("three", not_here), Part("four", number)]
    assert report("--device", "cpu", parts=parts)[0] == 0
    assert saved(tmp_path, "one")["reason"] == "RuntimeError: a kernel of ours | is wrong"
    assert (saved(tmp_path, "two")["status"], saved(tmp_path, "two")["reason"]) == (
        "not run",
        "needs the package no_such_package",
    )
    assert (saved(tmp_path, "three")["status"], saved(tmp_path, "three")["reason"]) == ("not run", "one GPU")
    assert saved(tmp_path, "four")["status"] == "done"
    assert (
        r"| one | failed | 0.0 | RuntimeError: a kernel of ours \| is wrong |"
        in (tmp_path / "r" / "report.md").read_text()
    )
    report("--device", "cpu", parts=parts)
    assert done == ["one", "two", "three"]  # what is not done is tried again


def test_no_budget_leaves_everything_not_measured(report, tmp_path):
    status, err = report("--device", "cpu", "--budget", "0", parts=[Part("one", number), Part("two", number)])
    assert status == 0
    assert done == []
    assert "the budget of 0 s is spent" in err
    page = (tmp_path / "r" / "report.md").read_text()
    assert "| one | not measured |" in page
    assert "| two | not measured |" in page


def test_the_budget_is_looked_at_before_each_part(report):
    report("--device", "cpu", "--budget", "0.2", parts=[Part("one", pause), Part("two", number)])
    assert done == ["one"]


def pause(setup):
    time.sleep(0.3)
    return {}


def test_anothers_folder_is_refused_in_one_line(report, tmp_path):
    assert report("--device", "cpu", parts=[Part("one", number)])[0] == 0
    machine = json.loads((tmp_path / "r" / "machine.json").read_text())
    (tmp_path / "r" / "machine.json").write_text(json.dumps(machine | {"torch": "1.0"}))
    status, err = report("--device", "cpu", parts=[Part("two", number)])
    assert (status, done) == (2, [])
    assert err.startswith("gpu_report: ")
    assert f"a report folder that is another's (torch: 1.0, now {torch.__version__.partition('+')[0]}" in err
    assert len(err.splitlines()) == 1
    status, err = report("--device", "cpu", "--rehearse")
    assert (status, "rehearsal: False, now True" in err) == (2, True)


def test_a_folder_of_other_things_is_refused(report, tmp_path):
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "thesis.txt").write_text("x")
    status, err = report("--device", "cpu")
    assert (status, len(err.splitlines())) == (2, 1)
    assert "something else in it" in err


def test_what_cannot_be_run_is_refused_in_one_line(report, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (tmp_path / "w.pth").write_text("x")
    for words, reason in (
        ([], "no CUDA device"),
        (["--device", "cpu", "--budget", "-1"], "--budget -1"),
        (["--device", "cpu", "--images", str(tmp_path)], "no folder with JPEGs"),
        (["--device", "cpu", "--reference_path", str(tmp_path)], "no reference.py"),
        (["--device", "cpu", "--weights", str(tmp_path / "w.pth")], "not a"),
    ):
        status, err = report(*words)
        assert (status, len(err.splitlines())) == (2, 1), err
        assert reason in err
        assert not (tmp_path / "r").exists()


@pytest.mark.slow
def test_a_crash_or_a_hang_costs_one_part(tmp_path, served):
    worker = Worker(Setup(CPU, tmp_path, tmp_path))
    try:
        first = worker.run(Part("a", process))["result"]["pid"]
        assert worker.run(Part("b", process))["result"]["pid"] == first != os.getpid()
        assert worker.run(Part("c", crash))["reason"] == "its process ended with status 3"
        assert worker.run(Part("d", process))["result"]["pid"] != first
        worker.limit = 0.2
        found = worker.run(Part("e", hang))
        assert (found["status"], found["reason"]) == ("failed", "it took longer than 0.2 s")
        assert worker.process is None
    finally:
        worker.end()


@pytest.mark.parametrize("start", [1, 64])
@pytest.mark.parametrize("step", [1, 8])
@pytest.mark.parametrize("capacity", [0, 1, 5, 63, 64, 65, 300, 1000, 5000])
def test_largest_batch_is_found_by_doubling_and_bisection(capacity, start, step):
    tried = []
    found = gpu_speed.largest_batch(lambda batch: tried.append(batch) or batch <= capacity, start, 1000, step)
    best = min(capacity, 1000)
    assert best - (step if best >= step else 1) < found <= best
    assert len(tried) <= 20
    assert max(tried) <= 1000


def test_a_batch_that_does_not_fit_is_told_from_an_error(monkeypatch):
    case = gpu_speed.Case("eat_nano", 1, "float32", False, False, False, "cpu")
    for error, fits in (
        (torch.OutOfMemoryError("x"), False),
        (RuntimeError("CUBLAS_STATUS_ALLOC_FAILED"), False),
    ):
        monkeypatch.setattr(case, "step", lambda error=error: (_ for _ in ()).throw(error))
        assert gpu_speed.fits(case, 1) is fits
    monkeypatch.setattr(case, "step", lambda: (_ for _ in ()).throw(RuntimeError("illegal")))
    with pytest.raises(RuntimeError, match="illegal"):
        gpu_speed.fits(case, 1)


def test_another_implementation_is_run_in_turn(tmp_path, monkeypatch):
    (tmp_path / "reference.py").write_text(
        "import models\n\n\nclass Both(models.EAT):\n    def forward(self, x):\n        return super().forward(x), None\n\n\n"
        "def build(name):\n    assert name == 'eat_nano'\n"
        "    return Both(dim_stem=8, dims=(8, 16, 32, 64), depths=(2, 2, 2, 2), heads=(1, 2, 4, 8), groups=(-1, -1, 2, 4))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    setup = Setup(CPU, tmp_path, tmp_path, reference=tmp_path, rehearse=True)
    row = gpu_speed.other(setup, "eat_nano", 1, "float32", training=False)
    assert row["reference_images_per_second"] > 0
    assert isinstance(gpu_speed.build_other(setup, "eat_nano").network, torch.nn.Module)


def test_throughput_is_measured_by_the_fastest_ways(tmp_path):
    setup = Setup(CPU, tmp_path, tmp_path, rehearse=True)
    assert gpu_speed.ways_found(setup, "eat_nano", "bf16") == {}
    record = {"status": "done", "result": {"fastest": {"D 96 channels, 4 heads": "dense"}}}
    (tmp_path / "ways-eat_nano-bf16.json").write_text(json.dumps(record))
    assert gpu_speed.ways_found(setup, "eat_nano", "bf16") == {"D 96 channels, 4 heads": "dense"}


def test_trained_weights_of_ones_own_are_scored_in_bf16(tmp_path):
    model = create_model("eat_nano", interest_points="image")
    model.purpose = {"model": "eat_nano"}
    torch.save(model.state_dict(), tmp_path / "w.pth")
    setup = Setup(CPU, tmp_path, tmp_path, weights=tmp_path / "w.pth", rehearse=True)
    found = gpu_parts.bf16(setup)
    assert 0 < found["largest"] < 1
    assert found["network"] == str(tmp_path / "w.pth")


@pytest.mark.slow
def test_two_processes_share_their_gradients(served):
    found = gpu_parts.in_two("cpu", "eat_nano", 2, "float32", 1)
    assert found["same_weights"]
    assert found["images_per_second"] > 0
