"""The SMALL network: in place of EAT's within a test, and, where this file is started instead of main_nni.py, in a run."""

import gc
import sys
from pathlib import Path

if __name__ == "__main__":
    gc.disable()  # a process starts sooner so
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import main_nni
from models import create_model
from training import build

# eat_nano with one or two narrow blocks a stage, every kind among them: 15,000 parameters.
SMALL = {
    "dim_stem": 8, "dims": (8, 8, 16, 16), "heads": (1, 1, 2, 2), "groups": (-1, -1, 1, 1),
    "depths": (1, 1, 2, 1), "stage_spec": (("L",), ("S",), ("L", "D"), ("D",)),
}  # fmt: skip


def create_small(name, *given, **settings):
    """The SMALL network in place of EAT's; timm's as they are."""
    return create_model(name, *given, **({} if name.startswith("timm/") else SMALL) | settings)


if __name__ == "__main__":
    gc.enable()
    build.create_model = create_small
    sys.exit(main_nni.main())
