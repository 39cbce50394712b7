"""eat_nano as the tests have it: SMALL, quick to run, trace and export. Started instead of main_nni.py: a run of it."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from models import variants

# One narrow block a stage, every kind among them, the dearest where the map is smallest: 12,000 parameters.
SMALL = {
    "dim_stem": 8, "dims": (8, 8, 16, 16), "heads": (1, 1, 2, 2), "groups": (-1, -1, -1, 1),
    "depths": (1, 1, 1, 1), "stage_spec": (("L",), ("S",), ("L",), ("D",)),
}  # fmt: skip
LOOKING = SMALL | {"groups": (-1, -1, 1, 1), "stage_spec": (("L",), ("S",), ("D",), ("D",))}  # in two places
NANO = variants.NANO  # as users have it
variants.NANO = SMALL

if __name__ == "__main__":
    import main_nni

    sys.exit(main_nni.main())
