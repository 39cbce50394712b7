"""Verdicts of the report: what was measured against the goals. What was not measured is said to be so."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

MET, MISSED, NOT_MEASURED = "met", "missed", "not measured"
RATIO, SHARE, RATE = 5.0, 0.35, 2600.0  # the goals, all of them in training eat_base
NEAR = 0.995  # of a decoder's pixels must lie within one grey level of PIL's

Records = dict[str, dict]


class Verdict(NamedTuple):
    """verdict: MET, MISSED or NOT_MEASURED; figure: what was found, if anything."""

    goal: str
    verdict: str
    figure: str = ""


def verdicts(machine: dict, records: Records) -> list[Verdict]:
    """What came of each goal. One whose part was not run, or not on a GPU, is not measured."""
    found = results(records)
    rows = [row for row in of_kind(found, "speed") if (row["model"], row["mode"]) == ("eat_base", "training")]
    ratios = [(row["ratio"], f"{row['ratio']:.2f} times, {_case(row)}") for row in rows if "ratio" in row]
    shares = [(matrix_share(row, found), row) for row in rows]
    shares = [(share, f"{share:.1%}, {_case(row)}") for share, row in shares if share is not None]
    rates = [(row["images_per_second"], row) for row in rows if row["images_per_second"]]
    rates = [(rate, f"{rate:,.0f} images/s, {_case(row)}") for rate, row in rates]
    none = "" if machine["devices"] else "no GPU"
    no_h100 = "" if "H100" in machine["device"] else "no H100"
    return [
        *_right(none, records),
        _goal("5 times the plain float32 path, training eat_base", none, ratios, RATIO),
        _goal("35 % of the measured matrix rate, training eat_base", none, shares, SHARE),
        _goal("2,600 images/s on an H100, training eat_base", none or no_h100, rates, RATE),
    ]


def results(records: Records) -> dict[str, dict]:
    """The results of the parts that are done."""
    return {name: record["result"] for name, record in records.items() if record["status"] == "done"}


def of_kind(found: dict[str, dict], kind: str) -> list[dict]:
    return [result for name, result in found.items() if name.partition("-")[0] == kind]


def matrix_share(row: dict, found: dict[str, dict]) -> float | None:
    """The part of the measured matrix rate, in the row's precision, that it reaches."""
    rate = found.get(f"matrix-{row['precision']}", {}).get("tflops")
    return row["tflops"] / rate if rate and row.get("tflops") else None


def _case(row: dict) -> str:
    return f"batch {row['batch']}, {row['precision']}{', compiled' * row['compiled']}"


def _goal(goal: str, lacking: str, figures: list[tuple[float, str]], least: float) -> Verdict:
    """The best of the figures against the least that will do. lacking: why nothing counts, if so."""
    if lacking or not figures:
        return Verdict(goal, NOT_MEASURED, lacking)
    best, words = max(figures)
    return Verdict(goal, MET if best >= least else MISSED, words)


def _right(lacking: str, records: Records) -> list[Verdict]:
    """What must be true whatever the speed."""

    def judged(goal: str, name: str, right: Callable[[dict], bool], figure: Callable[[dict], str]) -> Verdict:
        record = records.get(name, {"status": NOT_MEASURED})
        if lacking or record["status"] != "done":
            return Verdict(goal, NOT_MEASURED, lacking or record.get("reason", ""))
        return Verdict(goal, MET if right(record["result"]) else MISSED, figure(record["result"]))

    return [
        judged(
            "Golden predictions and gradients in float32",
            "golden",
            lambda result: all(row["right"] for row in result["rows"]),
            lambda result: ", ".join(
                f"{row['way']} {'right' if row['right'] else 'wrong'}" for row in result["rows"]
            ),
        ),
        judged(
            "Training waits for nothing",
            "synchronisation",
            lambda result: not any(row["waits"] for row in result["rows"]),
            lambda result: "; ".join(sorted({row["waits"] for row in result["rows"] if row["waits"]})),
        ),
        judged(
            "Pixels decoded on the GPU are PIL's to one grey level",
            "pixels",
            lambda result: all(row["within_one"] >= NEAR for row in result["rows"]),
            lambda result: f"{min(row['within_one'] for row in result['rows']):.2%} of them",
        ),
        judged(
            "Two processes keep the same weights",
            "two_processes",
            lambda result: result["same_weights"],
            lambda result: f"{result['images_per_second']:,.0f} images/s, {result['model']}",
        ),
    ]
