"""EAT's entry point: train and evaluate on one dataset, alone or as a trial of `nnictl`. Try `--help`."""

from __future__ import annotations

import logging
import sys

import option
from commands import distributed
from commands.errors import guarded
from commands.files import to_json
from commands.parser import parse_options
from searching import trial

log = logging.getLogger("eat")


def main(argv: list[str] | None = None) -> int:
    """Run; returns the exit status: 0, 1 if training failed, 2 for a bad request, 128 and more if interrupted."""

    def work() -> None:
        given = parse_options(argv)
        if given.get("options"):
            given = option.from_file(given["options"], given)
        if not (given.get("resume") or trial.in_search()):  # those go on with options from elsewhere
            option.complete(given)  # refuses what contradicts itself, before seconds of imports
        log.info("%s; loading PyTorch", _purpose(given))
        import experiment

        result = experiment.run(given)
        if distributed.rank() == 0:
            print(to_json(result), flush=True)

    trial.end_with_parent()
    return guarded("main_nni.py", work)


def _purpose(given: dict) -> str:
    if given.get("resume"):
        return f"resuming {given.get('experiment_dir_name')}"
    return f"{'evaluating' if given.get('eval') else 'training'} on {given.get('dataset', 'demo')}"


if __name__ == "__main__":
    sys.exit(main())
