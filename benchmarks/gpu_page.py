"""The report's page, as HTML in one file and as Markdown: the verdicts, a table for each kind of part, and what was not run."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import NamedTuple

from benchmarks.gpu_verdicts import Records, matrix_share, of_kind, results, verdicts
from commands.files import atomic_write

STYLE = """
:root { color-scheme: light dark; --ground: #f7f6f3; --panel: #fff; --ink: #1b1d21; --muted: #585d66; --line: #d9d7d1;
  --met: #17683a; --missed: #a4262c; }
@media (prefers-color-scheme: dark) { :root { --ground: #131417; --panel: #1c1e22; --ink: #eceae6; --muted: #a6aab2;
  --line: #33363c; --met: #6fce93; --missed: #ff9a94; } }
body { margin: 0 auto; max-width: 1280px; padding: 1.5rem clamp(12px, 3vw, 36px) 4rem; background: var(--ground);
  color: var(--ink); font: 15px/1.45 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
h1 { margin: 0; font-size: 1.6rem; } h2 { margin: 2rem 0 .5rem; font-size: 1.1rem; }
p { margin: .3rem 0 .6rem; color: var(--muted); max-width: 80ch; overflow-wrap: anywhere; }
.scrolls { overflow-x: auto; background: var(--panel); border: 1px solid var(--line); border-radius: 8px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; text-align: left; border-bottom: 1px solid var(--line); vertical-align: top; overflow-wrap: break-word; }
th { color: var(--muted); font-weight: 500; white-space: nowrap; } tr:last-child td { border-bottom: 0; }
td.number { text-align: right; white-space: nowrap; } th.number { text-align: right; }
.met { color: var(--met); font-weight: 650; } .missed, .failed { color: var(--missed); font-weight: 650; }
"""

NO_MEMORY = "out of memory"


class Table(NamedTuple):
    """rows: text, by column; a column of figures is set to the right."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    note: str = ""


def write_pages(out: Path, machine: dict, records: Records) -> None:
    """Write report.html and report.md of what there is."""
    title = f"EAT on {machine['device']}" + (
        ": a rehearsal, its numbers mean nothing" if machine["rehearsal"] else ""
    )
    facts = ", ".join(
        f"{name} {value}" for name, value in machine.items() if value not in ("", None, False, "CPU")
    )
    tables = [table for table in make_tables(machine, records) if table.rows]
    with atomic_write(out / "report.md") as file:
        file.write(as_markdown(title, facts, tables))
    with atomic_write(out / "report.html") as file:
        file.write(as_html(title, facts, tables))


def make_tables(machine: dict, records: Records) -> list[Table]:
    """All tables, also those without rows."""
    found = results(records)
    judged = [[v.goal, v.verdict, v.figure] for v in verdicts(machine, records)]
    parts = [
        [name, record["status"], number(record.get("seconds"), 1), record.get("reason", "")]
        for name, record in records.items()
    ]
    return [
        Table("Verdicts", ["goal", "verdict", "found"], judged),
        throughput(found, "speed", "Throughput", "the plain path"),
        throughput(found, "other", "Against the other implementation", "the other"),
        Table(
            "Large matrix products",
            ["precision", "TFLOP/s"],
            [
                [name.partition("-")[2], number(r["tflops"], 1)]
                for name, r in found.items()
                if name.startswith("matrix-")
            ],
        ),
        attention_ways(found),
        *(kernels(result) for result in of_kind(found, "kernels")),
        memory(found),
        golden(found),
        bf16(found),
        synchronisation(found),
        loading(found),
        pixels(found),
        Table(
            "Parts",
            ["part", "status", "seconds", "reason"],
            parts,
            "The same command goes on with those not measured.",
        ),
    ]


def throughput(found: dict[str, dict], kind: str, title: str, beside: str) -> Table:
    columns = ["model", "mode", "batch", "precision", "images/s", beside, "ratio (range)"]
    columns += ["TFLOP/s", "of matrix rate", "ways"]
    rows = []
    for r in of_kind(found, kind):
        share = matrix_share(r, found)
        row = [r["model"], r["mode"], str(r["batch"]), r["precision"] + ", compiled" * r["compiled"]]
        row += [number(r["images_per_second"], 1) if r["images_per_second"] else NO_MEMORY]
        row += [number(r.get("reference_images_per_second"), 1)]
        row += [f"{r['ratio']:.2f} ({r['ratio_min']:.2f} to {r['ratio_max']:.2f})" if "ratio" in r else "-"]
        row += [number(r.get("tflops"), 2), "-" if share is None else f"{share:.1%}", short_ways(r["ways"])]
        rows.append(row)
    note = (
        f"Run in turn with {beside}; the ratio is a median over pairs. TFLOP/s counts matrix products and convolutions, three times "
        "the forward pass in training. Ways: those of the deformable layers, and of the windows where they are not fused."
    )
    return Table(title, columns, rows, note)


def short_ways(ways: dict[str, str]) -> str:
    """The different ways of a network's layers, in a few words."""
    words = dict.fromkeys(way for name, way in ways.items() if name[0] == "D" or way != "fused")
    return ", ".join(words) or "sampled"


def attention_ways(found: dict[str, dict]) -> Table:
    rows, said = [], []
    for name, result in found.items():
        if not name.startswith("ways-"):
            continue
        said += result["left_out"]
        for layer, times in result["times"].items():
            shown = [f"{way} {ms:.2f}" for way, ms in sorted(times.items(), key=lambda item: item[1])]
            rows.append([name.partition("-")[2], layer, ", ".join(shown) or "none"])
    note = "Forward and backward of one layer, the fastest way first. " + " ".join(
        f"{line}." for line in dict.fromkeys(said)
    )
    return Table("Ways of attention", ["network", "layers", "ms"], rows, note)


def kernels(result: dict) -> Table:
    rows = [
        [row["kernel"][:100], f"{row['calls']:g}", number(row["ms"], 3), f"{row['share']:.1%}"]
        for row in result["rows"]
    ]
    title = f"The dearest kernels, {result['mode']} {result['model']}"
    note = (
        f"Of a step of {result['batch']} images in {result['precision']}, {result['ms']:.1f} ms of kernels."
    )
    return Table(title, ["kernel", "calls", "ms", "share"], rows, note)


def memory(found: dict[str, dict]) -> Table:
    columns = ["model", "mode", "precision", "batch", "peak MiB", "largest batch that fits"]
    rows = [
        [
            r["model"],
            r["mode"],
            r["precision"],
            str(r["batch"]),
            number(r["peak_mib"], 0),
            f"{r['largest']}{' or more' * r['tried_all']}",
        ]
        for r in of_kind(found, "memory")
    ]
    return Table("Memory", columns, rows)


def golden(found: dict[str, dict]) -> Table:
    if "golden" not in found:
        return Table("", [], [])
    limits = found["golden"]["limits"]
    rows = [[r["way"], *(exact(r[name]) for name in limits)] for r in found["golden"]["rows"]]
    rows.append(["allowed", *(exact(limit) for limit in limits.values())])
    columns = ["way", *(name.replace("_", " ") for name in limits)]
    note = "The largest differences from the released numbers in float32: of predictions as they are, of the rest relative."
    return Table("Golden numbers", columns, rows, note)


def bf16(found: dict[str, dict]) -> Table:
    if "bf16" not in found:
        return Table("", [], [])
    r = found["bf16"]
    names = {
        "largest": "largest difference of a score",
        "mean": "mean difference",
        "spread": "standard deviation of the scores",
        "srcc_between": "SRCC of one with the other",
        "srcc_float32": "SRCC in float32",
        "srcc_bf16": "SRCC in bf16",
    }
    rows = [[words, number(r[name], 5)] for name, words in names.items()]
    return Table(
        "bf16 beside float32",
        ["", "scores"],
        rows,
        f"{r['network']}; {r['images']} other pictures of the demo.",
    )


def synchronisation(found: dict[str, dict]) -> Table:
    r = found.get("synchronisation", {"rows": [], "checked": True})
    rows = [
        [row["precision"], row["interest_points"], row["waits"] or ("no" if r["checked"] else "not checked")]
        for row in r["rows"]
    ]
    return Table("Waiting for the device in training", ["precision", "interest points", "waits"], rows)


def loading(found: dict[str, dict]) -> Table:
    rows = [
        [r["decoder"], str(r["workers"]), str(r["batch"]), number(r["images_per_second"], 0)]
        for r in of_kind(found, "loader")
    ]
    return Table("Loading", ["--decode", "processes", "batch", "images/s"], rows)


def pixels(found: dict[str, dict]) -> Table:
    r = found.get("pixels", {"rows": [], "decoder": ""})
    rows = [
        [
            row["resize"],
            str(row["pictures"]),
            f"{row['within_one']:.3%}",
            f"{row['equal']:.2%}",
            number(row["mean"], 4),
            str(row["largest"]),
        ]
        for row in r["rows"]
    ]
    columns = ["resize", "pictures", "within one grey level", "equal", "mean difference", "largest"]
    return Table(f"Pixels of --decode {r['decoder']} against PIL's", columns, rows)


def number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def exact(value: float | None) -> str:
    return "not a number" if value is None else f"{value:.1e}"


def as_markdown(title: str, facts: str, tables: list[Table]) -> str:
    lines = [f"# {title}", "", facts]
    for table in tables:
        lines += ["", f"## {table.title}", ""] + ([table.note, ""] if table.note else [])
        lines += [markdown_row(table.columns), "|---" * len(table.columns) + "|"]
        lines += [markdown_row(row) for row in table.rows]
    return "\n".join(lines) + "\n"


def markdown_row(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


def as_html(title: str, facts: str, tables: list[Table]) -> str:
    body = [f"<h1>{escape(title)}</h1>\n<p>{escape(facts)}</p>"]
    for table in tables:
        body.append(f"<h2>{escape(table.title)}</h2>")
        if table.note:
            body.append(f"<p>{escape(table.note)}</p>")
        figures = [
            all(row[i] in ("-", NO_MEMORY) or row[i][:1].isdigit() for row in table.rows)
            for i in range(len(table.columns))
        ]
        marks = [' class="number"' if figure else "" for figure in figures]
        head = "".join(
            f"<th{mark}>{escape(name)}</th>" for name, mark in zip(table.columns, marks, strict=True)
        )
        body.append(f'<div class="scrolls"><table>\n<tr>{head}</tr>')
        for row in table.rows:
            cells = [
                f' class="{cell}"' if cell in ("met", "missed", "failed") else mark
                for cell, mark in zip(row, marks, strict=True)
            ]
            body.append(
                "<tr>"
                + "".join(f"<td{mark}>{escape(cell)}</td>" for cell, mark in zip(row, cells, strict=True))
                + "</tr>"
            )
        body.append("</table></div>")
    head = f'<meta charset="utf-8">\n<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{escape(title)}</title>'
    content = "\n".join(body)
    return f'<!doctype html>\n<html lang="en">\n<head>\n{head}\n<style>{STYLE}</style>\n</head>\n<body>\n{content}\n</body>\n</html>\n'
