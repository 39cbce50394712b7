"""`eat_test`, the tests' stand-in network, registered beside EAT's own variants; `--help` does not show it."""

from timm.models import generate_default_cfgs, register_model

import option
from models import variants

# One narrow block a stage, every kind among them, the dearest where the map is smallest: 14,000 parameters.
SMALL = {
    "dim_stem": 8, "dims": (8, 8, 16, 16), "heads": (1, 1, 2, 2), "groups": (-1, -1, -1, 1),
    "depths": (1, 1, 1, 1), "stage_spec": (("L",), ("S",), ("L",), ("D",)),
}  # fmt: skip
TWO_DEFORMABLE = {"groups": (-1, -1, 1, 1), "stage_spec": (("L",), ("S",), ("D",), ("D",))}  # layers

default_cfgs = generate_default_cfgs({"eat_test.untrained": variants.default_cfg(224)})


@register_model
def eat_test(pretrained=False, **overrides):
    return variants.create("eat_test", pretrained, overrides, **SMALL)


variants.VARIANTS.append("eat_test")
option.MODELS.append("eat_test")
option.ANY_MODEL.insert(-1, "eat_test")
