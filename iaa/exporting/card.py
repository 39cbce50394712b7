"""The model card of a hub folder, made from the run that the weights are in."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from iaa.evaluation.test_metrics import LABELS
from iaa.networks.trained_network import TrainedNetwork
from iaa.runtime.files import read_json_object, to_json
from iaa.training.checkpoint import epoch_of
from models import read_weights
from models.backbone import TIMM_PREFIX
from models.names import HUB_PREFIX
from option import GROUPS, find_meaningless

TEMPLATE = Path(__file__).with_name("card.md")  # for Jinja
# The options that a card shows. Paths are private.
RECIPE = (
    *(option.name for group in ("model", "training") for option in GROUPS[group] if option.tunable),
    *("select_by", "tta", "amp", "seed", "released_protocol", "val_share", "limit"),
)
# Datasets without a public name.
NAMES = {"demo": "the demo's made-up pictures", "csv": "a dataset of the user's own"}
HUB_METRICS = {"srcc": "spearmanr", "plcc": "pearsonr", "accuracy": "accuracy"}  # the hub's names


def write_card(trained: TrainedNetwork, about: dict) -> str:
    """Markdown with the hub's front matter. The card says so if the recipe or the metrics are unknown."""
    options, result = read_run(trained)
    meaningless = find_meaningless(options)
    recipe = {name: options[name] for name in RECIPE if name in options and name not in meaningless}
    start = options.get("path_to_model_weight", "")
    architecture = trained.name.removeprefix(TIMM_PREFIX) if trained.points is None else ""
    dataset = NAMES.get(trained.dataset, trained.dataset.upper().replace("_", "-"))
    metrics = {name: result[name] for name in LABELS if result.get(name) is not None}
    same_scores = result.get("interest_points") == trained.points and options.get("tta") != "flip"
    family = architecture.split(".")[0] or "eat"
    card = ModelCard.from_template(
        make_front_matter(trained, family, dataset, metrics if same_scores else {}),
        template_str=TEMPLATE.read_text(encoding="utf-8"),
        about=about,
        architecture=architecture,
        data=dataset,
        millions=sum(p.numel() for p in trained.model.parameters()) / 1e6,
        options=options,
        start=start if start.startswith(HUB_PREFIX) else Path(start).name,
        recipe=recipe,
        result=result,
        metrics={LABELS[name]: value for name, value in metrics.items()},
        preprocessing=to_json(about["preprocessing"], indent=2),
    )
    return str(card)


def make_front_matter(trained: TrainedNetwork, family: str, dataset: str, metrics: dict) -> ModelCardData:
    """The card's metadata. It names no licence: the hub would apply ours to the weights, whose licence follows from the data."""
    task = "image-classification"  # the hub's nearest
    measured = {"task_type": task, "task_name": "image aesthetics assessment", "dataset_split": "test"}
    measured |= {"dataset_type": trained.dataset, "dataset_name": dataset}
    results = [
        EvalResult(
            metric_type=type_, metric_name=LABELS[name], metric_value=round(metrics[name], 4), **measured
        )
        for name, type_ in HUB_METRICS.items()
        if name in metrics
    ]
    return ModelCardData(
        library_name="timm",
        pipeline_tag=task,
        tags=[family, "image-aesthetics-assessment", "timm", "pytorch", "safetensors"],
        datasets=None if trained.dataset in NAMES else [trained.dataset],
        model_name=trained.name if results else None,
        eval_results=results or None,
    )


def read_run(trained: TrainedNetwork) -> tuple[dict, dict]:
    """The options of the run that the weights lie in, and its metrics on test.csv; empty unless they belong to these weights."""
    path, run = trained.path, trained.path.resolve().parent.parent
    options, outcome = read_json_object(run / "options.json"), read_json_object(run / "run.json")
    options = {name: value for name, value in options.items() if value is not None}
    stated = read_weights(path).purpose.settings | {"model": trained.name, "dataset": trained.dataset}
    if any(options.get(name, value) != value for name, value in stated.items()):
        return {}, {}
    result = outcome.get("result") or {}
    finished = outcome.get("status") == "done" and result.get("split") == "test"
    same_weights = path.name == "best.pth" and result.get("best_epoch") in (None, epoch_of(path))
    return options, result if finished and same_weights else {}
