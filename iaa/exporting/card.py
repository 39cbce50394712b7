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
from option import GROUPS

TEMPLATE = Path(__file__).with_name("card.md")  # for Jinja
# The options that a card shows. Paths are private.
RECIPE = (
    *(option.name for group in ("model", "training") for option in GROUPS[group] if option.tunable),
    *("select_by", "amp", "seed", "released_protocol", "val_share", "limit"),
)
# Options that have an effect only if another one has this value.
SCHEDULED = ("explore_share", "explore_same", "explore_other", "handover", "eval_refinement")
ONLY_WITH = dict.fromkeys(("decay_every", "decay_factor"), ("schedule", "step"))
ONLY_WITH |= dict.fromkeys(SCHEDULED, ("refinement", "scheduled"))
NAMES = {
    "demo": "the demo's made-up pictures",
    "csv": "a dataset of the user's own",
}  # of datasets without a public name
HUB_METRICS = {"srcc": "spearmanr", "plcc": "pearsonr", "accuracy": "accuracy"}  # the hub's names
POINTS = {
    "image": "of each photograph alone: its score does not depend on others",
    "running": "a mean over the training photographs, kept: a score does not depend on other photographs",
    "grid": "none: the centres of its cells, as in plain DAT; a score does not depend on other photographs",
    "batch": "**means over the batch, as released: a score depends on the photographs beside it**",
    None: "",
}


def write_card(trained: TrainedNetwork, about: dict) -> str:
    """Markdown with the hub's front matter. The card says so if the recipe or the metrics are unknown."""
    run = trained.path.resolve().parent.parent
    options = _options(run, trained)
    result = _result(run, trained) if options else {}
    architecture = trained.name.removeprefix(TIMM_PREFIX) if trained.points is None else ""
    card = ModelCard.from_template(
        _front_matter(trained, architecture, result),
        template_str=TEMPLATE.read_text(encoding="utf-8"),
        about=about,
        architecture=architecture,
        data=_dataset_name(trained),
        millions=sum(p.numel() for p in trained.model.parameters()) / 1e6,
        points=POINTS[trained.points],
        options=options,
        start=Path(options.get("path_to_model_weight") or "").name,
        recipe=_recipe(options),
        result=result,
        metrics={label: result[name] for name, label in LABELS.items() if result.get(name) is not None},
        asked=', interest_points="batch"' * about["depends_on_batch"],  # this mode must be asked for
        preprocessing=to_json(about["preprocessing"], indent=2),
    )
    return str(card)


def _front_matter(trained: TrainedNetwork, architecture: str, result: dict) -> ModelCardData:
    """Without a licence: the hub would take it for that of the weights, which follows from the data."""
    dataset, task = trained.dataset, "image-aesthetics-assessment"
    family = architecture.split(".")[0] or "eat"
    entries = {} if dataset in NAMES else {"datasets": [dataset]}
    metrics = HUB_METRICS if result.get("interest_points") == trained.points else {}
    eval_results = [
        EvalResult(
            task_type=task,
            task_name=task.replace("-", " "),
            dataset_type=dataset,
            dataset_name=_dataset_name(trained),
            dataset_split="test",
            metric_type=kind,
            metric_name=LABELS[name],
            metric_value=round(result[name], 4),
        )
        for name, kind in metrics.items()
        if result.get(name) is not None
    ]
    if eval_results:
        entries |= {"model_name": trained.name, "eval_results": eval_results}
    return ModelCardData(
        library_name="timm", tags=[family, task, "timm", "pytorch", "safetensors"], **entries
    )


def _dataset_name(trained: TrainedNetwork) -> str:
    return NAMES.get(trained.dataset, trained.dataset.upper().replace("_", "-"))


def _options(run: Path, trained: TrainedNetwork) -> dict:
    """The run's options; empty if the run trained another network, or the weights came from elsewhere."""
    options = read_json_object(run / "options.json")
    same_run = options.get("model") == trained.name and options.get("dataset") == trained.dataset
    settings = read_weights(trained.path).purpose.settings
    same_weights = all(options.get(name) in (None, value) for name, value in settings.items())
    return options if same_run and same_weights else {}


def _recipe(options: dict) -> dict:
    """The options of RECIPE that had an effect, with their values."""
    recipe = {}
    for name in RECIPE:
        owner, value = ONLY_WITH.get(name, (name, options.get(name)))
        if options.get(name) is not None and options.get(owner) == value:
            recipe[name] = options[name]
    return recipe


def _result(run: Path, trained: TrainedNetwork) -> dict:
    """The run's metrics on its test photographs; empty if it did not finish, or measured other weights than these."""
    content = read_json_object(run / "run.json")
    result = content.get("result") or {}
    if trained.path.name != "best.pth" or content.get("status") != "done" or result.get("split") != "test":
        return {}
    if result.get("best_epoch") not in (None, epoch_of(trained.path)):
        return {}
    return result if {"images", "interest_points"} <= set(result) else {}
