"""From the official downloads to what training reads: CSVs, checked photographs. Try `--help`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from iaa.options.preparation_options import parse
from iaa.runtime.program import run_command


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand; returns the exit status: 0, 1 if `check` found bad photographs or copies, 2 for bad input, 128 and more."""
    options = parse(argv)

    def work() -> int | None:
        from iaa.photographs import preparation  # takes seconds

        prepare = preparation.check if options.command == "check" else preparation.prepare
        return prepare(options)

    return run_command("prepare_data.py", work, "nothing was written")


if __name__ == "__main__":
    sys.exit(main())
