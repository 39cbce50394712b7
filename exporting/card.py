"""The model card of a hub folder, made from the run that the weights lie in."""

from __future__ import annotations

import json
import math
from pathlib import Path

from evaluation.figures import LABELS
from exporting.about import as_text
from inference.trained import Trained
from models import read_weights
from option import GROUPS
from training.checkpoint import epoch_of

# What a run's options say of its recipe; none of its paths, which are nobody else's business.
RECIPE = (
    *(option.name for group in ("model", "training") for option in GROUPS[group] if option.tunable),
    *("select_by", "amp", "seed", "released_protocol", "val_share", "limit"),
)
# Options that count only where another one has this value.
ONLY_WITH = {
    "decay_every": ("schedule", "step"),
    "decay_factor": ("schedule", "step"),
    **dict.fromkeys(
        ("explore_share", "explore_same", "explore_other", "handover", "eval_refinement"),
        ("refinement", "scheduled"),
    ),
}
NAMES = {
    "ava": "AVA",
    "tad66k": "TAD66K",
    "flickr_aes": "FLICKR-AES",
    "aadb": "AADB",
    "para": "PARA",
    "demo": "the demo's made-up pictures",
    "csv": "a dataset of its trainer's own",
}
HUB_METRICS = {"srcc": "spearmanr", "plcc": "pearsonr", "accuracy": "accuracy"}  # names that the hub knows
POINTS = {
    "image": "of each photograph alone: its score does not depend on others",
    "running": "a mean over the training photographs, kept: a score does not depend on other photographs",
    "batch": "**means over the batch, as released: a score depends on the photographs beside it**",
}


def write(trained: Trained, about: dict) -> str:
    """Markdown with the hub's front matter. What is not known of the weights is said to be unknown."""
    run = trained.path.resolve().parent.parent
    options = _read(run / "options.json")
    if (options.get("model"), options.get("dataset")) != (trained.name, trained.dataset):
        options = {}  # of something else that lies there
    settings = read_weights(trained.path).settings
    if any(options.get(name) not in (None, value) for name, value in settings.items()):
        options = {}  # other weights were put into the run
    result = _result(run, trained) if options else {}
    low, high = trained.score_range
    data = NAMES[trained.dataset]
    about_demo = ""
    if trained.dataset == "demo":
        about_demo = " **These are demo weights: their scores are not aesthetics**, but follow damage done to two photographs."
    head = (
        f"# {trained.name}, trained on {data}\n\n"
        'An EAT network ("An Enhancer for Aesthetics-Oriented Transformers", ACM MM 2023, a reproduction) that scores '
        f"how beautiful a photograph is, on the scale of {data}, {low:g} to {high:g}.{about_demo}\n\n"
        f"- {_millions(trained)} M parameters, {trained.model.img_size} x {trained.model.img_size} pixels, "
        f"{trained.outputs} output{'s' * (trained.outputs > 1)} ({about['prediction']['meaning']})\n"
        f"- interest points: {POINTS[trained.points]}\n"
        f"- offset refinement: {trained.model.settings['refinement']}\n"
        f"- made from `{about['weights']['file']}`, SHA-256 `{about['weights']['sha256']}`"
    )
    sections = {
        "Data": f"{data[0].upper()}{data[1:]}. {_data(options)}",
        "Recipe": _recipe(options),
        "Metrics": _metrics(result, trained),
        "Use": _use(about),
        "Preprocessing": 'Exactly this; `config.json` has it under `eat`. In timm it is `crop_mode="squash"` with '
        f"`crop_pct=1.0`.\n\n```json\n{as_text(about['preprocessing'])}\n```",
        "Limits": _limits(trained),
    }
    parts = [head, *(f"## {title}\n\n{text}" for title, text in sections.items())]
    return f"---\n{_front_matter(trained, result)}---\n\n" + "\n\n".join(parts) + "\n"


def _front_matter(trained: Trained, result: dict) -> str:
    """YAML whose values are JSON, which YAML is a superset of."""
    entries = {
        "library_name": "timm",
        "tags": ["eat", "image-aesthetics-assessment", "timm", "pytorch", "safetensors"],
    }
    if trained.dataset not in ("demo", "csv"):
        entries["datasets"] = [trained.dataset]
    metrics = [
        {"type": kind, "name": LABELS[name], "value": round(result[name], 4)}
        for name, kind in HUB_METRICS.items()
        if _known(result.get(name)) and _measured_so(result, trained)
    ]
    if metrics:
        task = {"type": "image-aesthetics-assessment", "name": "image aesthetics assessment"}
        dataset = {"type": trained.dataset, "name": NAMES[trained.dataset], "split": "test"}
        results = [{"task": task, "dataset": dataset, "metrics": metrics}]
        entries["model-index"] = [{"name": trained.name, "results": results}]
    return "".join(f"{name}: {json.dumps(value)}\n" for name, value in entries.items())


def _data(options: dict) -> str:
    if not options:
        return (
            "The weights lie in no run of this project: which photographs they were trained on is not known."
        )
    selected = "the test photographs" if options.get("released_protocol") else "validation photographs"
    limit = f" Only the first {options['limit']} rows of each CSV were used." if options.get("limit") else ""
    return f"Trained on its `train.csv`; the checkpoint was selected on {selected}.{limit}"


def _recipe(options: dict) -> str:
    if not options:
        return "Unknown: the weights were exported without their run."
    start = options.get("path_to_model_weight")
    lines = [
        f"It started from {f'`{Path(start).name}`' if start else 'fresh weights'}.",
        "",
        "| option | value |",
    ]
    lines.append("|---|---|")
    for name in RECIPE:
        owner, value = ONLY_WITH.get(name, (None, None))
        if options.get(name) is not None and (owner is None or options.get(owner) == value):
            lines.append(f"| `{name}` | {options[name]} |")
    return "\n".join(lines)


def _metrics(result: dict, trained: Trained) -> str:
    if not result:
        return "Not known: nothing tells what these weights reached on test photographs."
    lines = [
        f"On the run's `test.csv`, {result['images']} photographs:",
        "",
        "| metric | value |",
        "|---|---|",
    ]
    lines += [f"| {LABELS[name]} | {result[name]:.4f} |" for name in LABELS if _known(result.get(name))]
    if trained.outputs == 1:
        lines.append("\nMAE and RMSE are those of scores from 0 to 1.")
    if not _measured_so(result, trained):
        lines.append(
            f"\n**Measured with interest points of the {result['interest_points']}**; "
            f"this export has those of the {trained.points}, and other scores."
        )
    return "\n".join(lines)


def _measured_so(result: dict, trained: Trained) -> bool:
    """Whether the run measured the network as it is exported."""
    return result.get("interest_points") == trained.points


def _use(about: dict) -> str:
    points = (
        ', interest_points="batch"' if about["interest_points"] == "batch" else ""
    )  # nobody gets that one without asking
    return f"""With the project's code beside it:

```python
import torch
import models, trained

network = models.create_model("FOLDER").eval()  # this folder; timm.create_model("local-dir:FOLDER", pretrained=True) too

ready = trained.load_trained("FOLDER"{points})  # knows the preprocessing and the scale, too
images = torch.zeros(1, 3, {ready_size(about)}, {ready_size(about)})  # preprocessed as below
scores = ready.scores(ready.model(images))
```

The score is the {about["score"]["formula"]}; weights {about["score"]["weights"]}, offset {about["score"]["offset"]}."""


def ready_size(about: dict) -> int:
    return about["preprocessing"]["resize"]["width"]


def _limits(trained: Trained) -> str:
    lines = [
        "The published figures of EAT are the authors' and are not claimed for these weights; what was measured stands above.",
        "A score says what the raters of that dataset would have said on average. It is no measure of a photograph's "
        "worth, and photographs unlike the dataset's have scores that nothing vouches for.",
        "The resize ignores the aspect ratio, so cropping and stretching may go unnoticed.",
        "No licence is stated: it follows from the data and from the weights it started from. Add one before you publish.",
    ]
    if trained.dataset == "demo":
        lines.insert(
            0, "Demo scores are not aesthetics: they show that the software works, and nothing else."
        )
    if trained.points == "batch":
        lines.insert(0, "Scores change with the batch: only batches of the same photographs can be compared.")
    return "\n".join(f"- {line}" for line in lines)


def _result(run: Path, trained: Trained) -> dict:
    """What the run measured on its test photographs, if it ended well and these are the weights it measured."""
    content = _read(run / "run.json")
    result = content.get("result")
    measured = trained.path.name == "best.pth" and content.get("status") == "done"
    if isinstance(result, dict) and result.get("best_epoch") is not None:
        measured = measured and epoch_of(trained.path) == result["best_epoch"]
    if not (measured and isinstance(result, dict) and result.get("split") == "test"):
        return {}
    return result if {"images", "interest_points"} <= set(result) else {}


def _read(path: Path) -> dict:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _known(value) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _millions(trained: Trained) -> str:
    return f"{sum(p.numel() for p in trained.model.parameters()) / 1e6:.2f}"
