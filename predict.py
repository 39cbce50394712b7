"""Score photographs with trained weights, and say why; from Python `from predict import Scorer`. Try `--help`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from iaa.options import scoring_options
from iaa.runtime.program import run_command


def main(argv: Sequence[str] | None = None) -> int:
    """Score; returns the exit status: 0, 1 where photographs have an error, 2 for bad input, 128 and more if interrupted."""

    def work() -> int:
        options = scoring_options.parse(argv)
        scoring_options.check(options)
        from iaa import prediction  # with torch and timm: seconds

        return prediction.run(options)

    rest = "rows written to --out are kept; with --append the same command goes on"
    return run_command("predict.py", work, rest)


def __getattr__(name: str):
    if name == "Scorer":
        from iaa.scoring.scorer import Scorer

        return Scorer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


if __name__ == "__main__":
    sys.exit(main())
