"""Export a trained network: ONNX, safetensors, or a folder for the Hugging Face hub. Try `--help`."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from iaa.errors import InputError, Interrupted
from iaa.exporting.output import ENDINGS, output_path, replacing
from iaa.options.scoring_options import WEIGHTS
from iaa.runtime.command_line import Parser
from iaa.runtime.files import to_json
from iaa.runtime.program import run_command
from option import Option

log = logging.getLogger("eat")

# fmt: off
TABLE = {
    "": (
        Option("to", str, None, "format: onnx file, safetensors file, or folder for the Hugging Face hub", choices=list(ENDINGS), required=True),
        Option("out", Path, None, "path of the export (default: beside the weights, with their name)", metavar="PATH"),
        Option("overwrite", bool, False, "replace an export that is there"),
        Option("gather", bool, False, "--to onnx: do not use the operator GridSample, for runtimes without it"),
    ),
    "weights": WEIGHTS,
}
# fmt: on


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, 1 if the export does not equal the network, 2 for a bad request."""
    options = parse(argv)
    return run_command(
        "export.py", lambda: print(to_json(export(options)), flush=True), rest="nothing was written"
    )


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The options; exits with status 2 if they are wrong."""
    usage = "export.py --weights FILE --to FORM [OPTION ...]"
    about = (
        "Export trained weights. Every export is read back, fed with photographs by its own description, and compared "
        "with PyTorch; an export that differs is removed. The last line of output is JSON."
    )
    parser = Parser(TABLE, prog="export.py", usage=usage, description=about)
    options = parser.parse_args(argv)
    if options.gather and options.to != "onnx":
        parser.error(f"--gather belongs to --to onnx, not {options.to}")
    return options


def export(options: argparse.Namespace) -> dict:
    """Write an export, check it, and return the last line of output. Raises InputError, WeightsError, ExportError."""
    # These are slow to import.
    from iaa.exporting import torch_files
    from iaa.exporting.description import BATCHES, describe, largest_difference
    from iaa.networks.trained_network import load_for_command

    contents, settings = (), {}
    if options.to == "onnx":
        try:
            import onnxscript  # noqa: F401  torch's exporter needs it

            from iaa.exporting import onnx_file
        except ModuleNotFoundError as error:
            raise InputError(
                f"--to onnx needs {error.name}: pip install -r requirements/export.txt"
            ) from None
        write, read, settings = onnx_file.write_onnx, onnx_file.open_onnx, {"gather": options.gather}
    elif options.to == "safetensors":
        write, read = torch_files.write_safetensors, torch_files.open_safetensors
    else:
        write, read, contents = torch_files.write_hub, torch_files.open_hub, torch_files.HUB_FILES
    trained = load_for_command(options)
    for note in trained.notes:
        log.warning("%s", note)
    suffix = "_gather" * options.gather
    out = output_path(options.to, options.out, Path(options.weights), trained.path, suffix)
    about = describe(trained)
    with replacing(out, options.overwrite, contents) as temporary:
        write(trained, temporary, about, **settings)
        difference = largest_difference(trained, *read(temporary))
        files = [temporary / name for name in contents] or [temporary]
        size = sum(path.stat().st_size for path in files)
    return {
        "written": str(out),
        "to": options.to,
        **settings,
        **{name: about[name] for name in ("model", "dataset", "score_range", "interest_points")},
        "megabytes": round(size / 1e6, 2),
        "largest_difference": difference,
        "checked_on": f"photographs in batches of {', '.join(map(str, BATCHES))}",
    }


def raise_interrupted(number: int, _frame) -> None:
    raise Interrupted(number)


if __name__ == "__main__":
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, raise_interrupted)  # so that the unfinished export is removed
    sys.exit(main())
