"""Pages of scores: made, and read back."""

import json
import re

import numpy as np

from helpers.data import arguments
from helpers.networks import make_weights
from iaa.reports.html_page import Page

FACTS = {"Weights": "best.pth", "Network": "eat_test"}


ODD = 'a "b" </script><b> & c.jpg'


VOTES = np.array([0.0, 0.01, 0.02, 0.1, 0.3, 0.32, 0.15, 0.08, 0.03, -0.01])


def a_page(**given):
    return Page("Some photographs", FACTS, (1.0, 10.0), **given)


def data_of(text):
    """What the page's script reads; as strict JSON."""

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    return json.loads(found[1], parse_constant=refuse)


def evaluate(run, folder, dataset="ava", **given):
    weights = folder / "best.pth"
    if not weights.exists():
        outputs, scale = (10, (1, 10)) if dataset == "ava" else (1, (0, 10))
        make_weights(weights, outputs, dataset, scale=scale)
    options = {"path_to_model_weight": weights, "experiment_dir_name": folder / "e", "report_images": None}
    return run(arguments(folder, dataset, eval=True, **options | given))
