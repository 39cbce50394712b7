"""torch.hub's door: EAT's networks by name, and the scorer of photographs.

    network = torch.hub.load(FOLDER, "eat_base", source="local", weights="AVA.pth")
    scorer = torch.hub.load(FOLDER, "scorer", "biq2021", source="local")

torch.hub takes FOLDER from `sys.path` when an entry has returned, so each entry imports all that its result needs later.
"""

import sys
from pathlib import Path

dependencies = ["torch", "torchvision", "timm", "einops", "numpy", "pandas", "scipy", "PIL", "safetensors"]

_FOLDER = Path(__file__).resolve().parent
for _name in ("models", "iaa", "util", "option", "dataset"):
    _file = getattr(sys.modules.get(_name), "__file__", None)
    if _name in sys.modules and (_file is None or _FOLDER not in Path(_file).resolve().parents):
        raise ImportError(
            f"torch.hub: a module named {_name!r} is already imported, from {_file}; load this repository in another process"
        )


def _network(name, num_classes, weights, overrides):
    import models

    network = models.create_model(name, num_classes, **overrides)
    if weights is not None:
        models.load_weights(network, weights)
    return network.eval()


def eat_nano(num_classes=10, weights=None, **overrides):
    """The smallest network, in evaluation mode: (B, 3, 224, 224) ImageNet-normalised images to (B, num_classes).

    num_classes: 10 for vote distributions, 1 for scores. weights: as `models.read_weights` takes them, such as a file or
    `hf-hub:OWNER/NAME`; None for a fresh start.
    overrides: settings of the network, as in `interest_points="image"`. Raises ValueError for a file that does not fit.
    """
    return _network("eat_nano", num_classes, weights, overrides)


def eat_tiny(num_classes=10, weights=None, **overrides):
    """27.6 M parameters; as `eat_nano` else."""
    return _network("eat_tiny", num_classes, weights, overrides)


def eat_small(num_classes=10, weights=None, **overrides):
    """48.9 M parameters; as `eat_nano` else."""
    return _network("eat_small", num_classes, weights, overrides)


def eat_base(num_classes=10, weights=None, **overrides):
    """The paper's network, 86.9 M parameters, whose weights the authors released; as `eat_nano` else."""
    return _network("eat_base", num_classes, weights, overrides)


def eat_base_384(num_classes=10, weights=None, **overrides):
    """`eat_base` for images of 384 x 384; as `eat_nano` else."""
    return _network("eat_base_384", num_classes, weights, overrides)


def scorer(weights, **options):
    """A `Scorer` of photographs. weights, options: as `iaa.scoring.Scorer` takes them, such as a file or `biq2021`."""
    from iaa.scoring import Scorer

    return Scorer(weights, **options)
