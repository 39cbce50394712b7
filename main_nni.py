"""EAT's entry point: train and evaluate on one dataset, alone or as a trial of `nnictl`. Try `--help`."""

from __future__ import annotations

import logging
import sys

import option
from iaa.runtime import distributed
from iaa.runtime.command_line import parse_options
from iaa.runtime.files import to_json
from iaa.runtime.program import run_command
from iaa.searching import nni_trial

log = logging.getLogger("eat")


def main(argv: list[str] | None = None) -> int:
    """Run; returns the exit status: 0, 1 if training failed, 2 for a bad request, 128 and more if interrupted."""

    def work() -> None:
        given = parse_options(argv)
        if given.get("options"):
            given = option.from_file(given["options"], given)
        if not (given.get("resume") or nni_trial.in_search()):  # those go on with options from elsewhere
            option.complete(given)  # refuses what contradicts itself, before seconds of imports
        log.info("%s; loading PyTorch", _purpose(given))
        from iaa import experiment

        result = experiment.run(given)
        if distributed.rank() == 0:
            print(to_json(result), flush=True)

    nni_trial.end_with_parent()
    return run_command("main_nni.py", work)


def _purpose(given: dict) -> str:
    if given.get("resume"):
        return f"resuming {given.get('experiment_dir_name')}"
    return f"{'evaluating' if given.get('eval') else 'training'} on {given.get('dataset', 'demo')}"


if __name__ == "__main__":
    sys.exit(main())
