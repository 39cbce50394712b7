"""Verdicts of the GPU report on made-up numbers, both ways, and what its pages quote."""

import pytest

from benchmarks.gpu_page import write_pages
from benchmarks.gpu_verdicts import MET, MISSED, NOT_MEASURED, verdicts

H100 = {"device": "NVIDIA H100 80GB HBM3", "devices": 1, "rehearsal": False}


def training(images, ratio=None, tflops=None, **other):
    row = {
        "model": "eat_base",
        "mode": "training",
        "batch": 64,
        "precision": "bf16",
        "compiled": False,
        "ways": {},
    }
    row |= {"images_per_second": images, "tflops": tflops} | ({"ratio": ratio} if ratio else {})
    return {"status": "done", "result": row | other}


def judged(machine, **records):
    return [
        verdict.verdict
        for verdict in verdicts(machine, {name.replace("_", "-", 1): r for name, r in records.items()})[-3:]
    ]


@pytest.mark.parametrize(
    ("images", "ratio", "tflops", "expected"),
    [
        (2600.0, 5.0, 280.0, [MET, MET, MET]),
        (2599.0, 4.99, 279.0, [MISSED, MISSED, MISSED]),
        (2700.0, 4.0, 100.0, [MISSED, MISSED, MET]),
    ],
)
def test_goals_are_met_or_missed_by_their_numbers(images, ratio, tflops, expected):
    matrix = {"status": "done", "result": {"tflops": 800.0}}
    assert judged(H100, speed_a=training(images, ratio, tflops), matrix_bf16=matrix) == expected
    better = training(
        9000.0, 9.0, 700.0, precision="float32"
    )  # the best counts; no matrix rate of its precision
    assert judged(H100, speed_a=training(images, ratio, tflops), speed_b=better, matrix_bf16=matrix) == [
        MET,
        expected[1],
        MET,
    ]


def test_what_was_not_run_is_never_met():
    matrix, good = {"status": "done", "result": {"tflops": 800.0}}, training(9000.0, 9.0, 700.0)
    assert judged(H100) == [NOT_MEASURED] * 3
    assert judged(H100, speed_a=good) == [MET, NOT_MEASURED, MET]
    assert judged(H100 | {"device": "NVIDIA A100"}, speed_a=good, matrix_bf16=matrix) == [
        MET,
        MET,
        NOT_MEASURED,
    ]
    assert (
        judged(H100 | {"device": "CPU", "devices": 0}, speed_a=good, matrix_bf16=matrix) == [NOT_MEASURED] * 3
    )
    for other in ({"mode": "forward"}, {"model": "eat_tiny"}):
        assert (
            judged(H100, speed_a=training(9000.0, 9.0, 700.0, **other), matrix_bf16=matrix)
            == [NOT_MEASURED] * 3
        )
    assert judged(H100, speed_a={"status": "failed", "reason": "x"}, matrix_bf16=matrix) == [NOT_MEASURED] * 3
    assert judged(H100, speed_a=training(None), matrix_bf16=matrix) == [NOT_MEASURED] * 3


@pytest.mark.parametrize("right", [True, False])
def test_verdicts_on_what_must_be_right(right):
    results = {
        "golden": {"rows": [{"way": "sampled", "right": True}, {"way": "dense", "right": right}]},
        "synchronisation": {"rows": [{"waits": None}, {"waits": None if right else "eat.py:10: waits"}]},
        "pixels": {"rows": [{"within_one": 0.9999}, {"within_one": 0.995 if right else 0.9949}]},
        "two_processes": {"same_weights": right, "images_per_second": 1.0, "model": "eat_base"},
    }
    records = {name: {"status": "done", "result": result} for name, result in results.items()}
    assert [verdict.verdict for verdict in verdicts(H100, records)[:4]] == [MET if right else MISSED] * 4
    assert {verdict.verdict for verdict in verdicts(H100 | {"devices": 0}, records)} == {NOT_MEASURED}
    records["golden"] = {"status": "failed", "reason": "RuntimeError: x"}
    assert verdicts(H100, records)[0][1:] == (NOT_MEASURED, "RuntimeError: x")


def test_pages_escape_what_they_quote(tmp_path):
    record = {"part": "a", "status": "failed", "seconds": 1.0, "reason": "<b> | & <script>"}
    write_pages(tmp_path, H100, {"a": record})
    assert "&lt;b&gt; | &amp; &lt;script&gt;" in (tmp_path / "report.html").read_text()
    assert r"<b> \| &" in (tmp_path / "report.md").read_text()
