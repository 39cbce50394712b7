"""The model card of a hub folder, made from the run that the weights lie in."""

from __future__ import annotations

import json
from pathlib import Path

from commands.files import read_json_object, to_json
from evaluation.figures import LABELS, markdown
from inference.trained import Trained
from models import read_weights
from models.backbone import PREFIX
from option import GROUPS
from training.checkpoint import epoch_of

# What a run's options say of its recipe; none of its paths, which are nobody else's business.
RECIPE = (
    *(option.name for group in ("model", "training") for option in GROUPS[group] if option.tunable),
    *("select_by", "amp", "seed", "released_protocol", "val_share", "limit"),
)
# Options that count only where another one has this value.
SCHEDULED = ("explore_share", "explore_same", "explore_other", "handover", "eval_refinement")
ONLY_WITH = dict.fromkeys(("decay_every", "decay_factor"), ("schedule", "step"))
ONLY_WITH |= dict.fromkeys(SCHEDULED, ("refinement", "scheduled"))
NAMES = {
    "demo": "the demo's made-up pictures",
    "csv": "a dataset of its trainer's own",
}  # the others have theirs
HUB_METRICS = {"srcc": "spearmanr", "plcc": "pearsonr", "accuracy": "accuracy"}  # names that the hub knows
POINTS = {
    "image": "of each photograph alone: its score does not depend on others",
    "running": "a mean over the training photographs, kept: a score does not depend on other photographs",
    "grid": "none: the centres of its cells, as in plain DAT; a score does not depend on other photographs",
    "batch": "**means over the batch, as released: a score depends on the photographs beside it**",
}
CARD = Path(__file__).with_name("card.md")
DEMO = (
    " **These are demo weights: their scores are not aesthetics**, but follow damage done to two photographs."
)
DEMO_LIMIT = "- Demo scores are not aesthetics: they show that the software works, and nothing else.\n"
BATCH_LIMIT = "- Scores change with the batch: only batches of the same photographs can be compared.\n"


def write(trained: Trained, about: dict) -> str:
    """Markdown with the hub's front matter. What is not known of the weights is said to be unknown."""
    run = trained.path.resolve().parent.parent
    options = read_json_object(run / "options.json")
    mine = {"model": trained.name, "dataset": trained.dataset}
    settings = read_weights(trained.path).settings.items()
    if not mine.items() <= options.items() or any(
        options.get(name) not in (None, one) for name, one in settings
    ):
        options = {}  # of something else that lies there, or other weights were put into the run
    result = _result(run, trained) if options else {}
    data, demo, batch = _name(trained), trained.dataset == "demo", trained.points == "batch"
    return CARD.read_text(encoding="utf-8").format(
        about=about,
        front_matter=_front_matter(trained, result),
        data=data,
        Data=data[0].upper() + data[1:],
        millions=sum(p.numel() for p in trained.model.parameters()) / 1e6,
        plural="s" * (trained.outputs > 1),
        **(_eat(trained) if trained.points else _other(trained)),
        trained_on=_data(options),
        recipe=_recipe(options),
        metrics=_metrics(result, trained),
        asked=', interest_points="batch"' * batch,  # nobody gets that one without asking
        preprocessing=to_json(about["preprocessing"], indent=2),
        demo=DEMO * demo,
        limits=BATCH_LIMIT * batch + DEMO_LIMIT * demo,
    )


def _eat(trained: Trained) -> dict[str, str]:
    """What the card says of a network of EAT."""
    refinement = trained.model.settings["refinement"]
    return {
        "family": "eat",
        "kind": 'An EAT network ("An Enhancer for Aesthetics-Oriented Transformers", ACM MM 2023, a reproduction)',
        "method": f"- interest points: {POINTS[trained.points]}\n- offset refinement: {refinement}\n",
        "network": "import models",
        "create": 'models.create_model("FOLDER").eval()  # this folder; '
        'timm.create_model("local-dir:FOLDER", pretrained=True) too',
    }


def _other(trained: Trained) -> dict[str, str]:
    """The same of one of timm's."""
    name = trained.name.removeprefix(PREFIX)
    return {
        "family": name.split(".")[0],
        "kind": f"timm's network `{name}`, with a head",
        "method": "",
        "network": "import timm",
        "create": 'timm.create_model("local-dir:FOLDER", pretrained=True).eval()  # this folder',
    }


def _name(trained: Trained) -> str:
    return NAMES.get(trained.dataset, trained.dataset.upper().replace("_", "-"))


def _front_matter(trained: Trained, result: dict) -> str:
    """YAML whose values are JSON, which YAML is a superset of."""
    entries = {}
    if trained.dataset not in ("demo", "csv"):
        entries["datasets"] = [trained.dataset]
    metrics = [
        {"type": kind, "name": LABELS[name], "value": round(result[name], 4)}
        for name, kind in HUB_METRICS.items()
        if result.get(name) is not None and result["interest_points"] == trained.points
    ]
    if metrics:
        task = {"type": "image-aesthetics-assessment", "name": "image aesthetics assessment"}
        dataset = {"type": trained.dataset, "name": _name(trained), "split": "test"}
        results = [{"task": task, "dataset": dataset, "metrics": metrics}]
        entries["model-index"] = [{"name": trained.name, "results": results}]
    return "".join(f"\n{name}: {json.dumps(value)}" for name, value in entries.items())


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
    rows = [["option", "value"]]
    for name in RECIPE:
        owner, value = ONLY_WITH.get(name, (name, options.get(name)))
        if options.get(name) is not None and options.get(owner) == value:
            rows.append([f"`{name}`", str(options[name])])
    start = f"It started from {f'`{Path(start).name}`' if start else 'fresh weights'}."
    return "\n".join([start, "", *markdown(rows)])


def _metrics(result: dict, trained: Trained) -> str:
    if not result:
        return "Not known: nothing tells what these weights reached on test photographs."
    points = result["interest_points"]
    lines = [f"On the run's `test.csv`, {result['images']} photographs:", ""]
    known = {label: result[name] for name, label in LABELS.items() if result.get(name) is not None}
    lines += markdown([("metric", "value"), *((label, f"{value:.4f}") for label, value in known.items())])
    if trained.outputs == 1:
        lines.append("\nMAE and RMSE are those of scores from 0 to 1.")
    if points != trained.points:
        lines.append(
            f"\n**Measured with interest points of the {points}**; "
            f"this export has those of the {trained.points}, and other scores."
        )
    return "\n".join(lines)


def _result(run: Path, trained: Trained) -> dict:
    """What the run measured on its test photographs, if it ended well and these are the weights it measured."""
    content = read_json_object(run / "run.json")
    result = content.get("result") or {}
    if trained.path.name != "best.pth" or content.get("status") != "done" or result.get("split") != "test":
        return {}
    if result.get("best_epoch") not in (None, epoch_of(trained.path)):
        return {}
    return result if {"images", "interest_points"} <= set(result) else {}
