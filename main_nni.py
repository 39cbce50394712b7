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
        options = parse_options(argv)
        if options.get("options"):
            options = option.read_options(options["options"], options)
        if not options.get("resume") and not nni_trial.in_search():  # these add options
            option.complete(options)  # refuses contradictions, before seconds of imports
        log.info("loading PyTorch")
        from iaa import experiment

        result = experiment.run(options)
        if distributed.rank() == 0:
            print(to_json(result), flush=True)

    nni_trial.end_with_parent()
    return run_command("main_nni.py", work)


if __name__ == "__main__":
    sys.exit(main())
