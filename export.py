"""Export a trained network: ONNX, safetensors, or a folder for the Hugging Face hub. Try `--help`."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from iaa.errors import InputError
from iaa.options.scoring_options import WEIGHTS
from iaa.runtime.command_line import Parser
from iaa.runtime.files import to_json
from iaa.runtime.program import run_command
from option import Option

log = logging.getLogger("eat")

ENDINGS = {"onnx": ".onnx", "safetensors": ".safetensors", "hub": "_hub"}  # by the value of --to

# fmt: off
TABLE = {
    "": (
        Option("to", str, None, "format: onnx file, safetensors file, or folder for the Hugging Face hub", choices=list(ENDINGS), required=True),
        Option("out", Path, None, "path of the export (default: beside the weights, with their name)", metavar="PATH"),
        Option("overwrite", bool, False, "replace an export that is there"),
        Option("note", str, None, "a line that travels with the weights; predict.py and --eval show it (default: the weights' own)", metavar="TEXT"),
    ),
    "weights": (replace(WEIGHTS[0], required=True), *WEIGHTS[1:]),
}
# fmt: on


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, 1 if the export does not equal the network, 2 for a bad request."""
    options = parse(argv)
    return run_command(
        "export.py", lambda: print(to_json(export(options)), flush=True), "nothing was written"
    )


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The options; exits with status 2 if they are wrong."""
    usage = "export.py --weights FILE --to FORM [OPTION ...]"
    about = (
        "Export trained weights. Every export is read back, fed with photographs by its own description, and compared "
        "with PyTorch; an export that differs is removed. The last line of output is JSON."
    )
    return Parser(TABLE, prog="export.py", usage=usage, description=about).parse_args(argv)


def export(options: argparse.Namespace) -> dict:
    """Write an export, check it, and return the last line of output. Raises InputError, TrainingError."""
    # These are slow to import.
    from iaa.exporting import torch_files
    from iaa.exporting.description import BATCHES, describe, largest_difference
    from iaa.networks.trained_network import load_for_command

    contents, write, read = (), torch_files.write_safetensors, torch_files.open_safetensors
    if options.to == "hub":
        contents, write, read = torch_files.HUB_FILES, torch_files.write_hub, torch_files.open_hub
    elif options.to == "onnx":
        try:
            import onnxscript  # noqa: F401  torch's exporter needs it

            from iaa.exporting import onnx_file
        except ModuleNotFoundError as error:
            needed = f"--to onnx needs {error.name}"
            raise InputError(f"{needed}: pip install -r requirements/export.txt") from None
        write, read = onnx_file.write_onnx, onnx_file.open_onnx
    trained = load_for_command(options)
    if options.note:
        trained.model.purpose = replace(trained.model.purpose, note=options.note)
    for note in trained.notes:
        log.warning("%s", note)
    out, about = output_path(options, trained.path), describe(trained)
    with replacing(out, options.overwrite, contents) as temporary:
        write(trained, temporary, about)
        difference = largest_difference(trained, *read(temporary))
        files = [temporary / name for name in contents] or [temporary]
        size = sum(path.stat().st_size for path in files)
    return {
        "written": str(out),
        "to": options.to,
        **{name: about[name] for name in ("model", "dataset", "score_range", "interest_points")},
        "megabytes": round(size / 1e6, 2),
        "largest_difference": difference,
        "checked_on": f"photographs in batches of {', '.join(map(str, BATCHES))}",
    }


def output_path(options: argparse.Namespace, weights_file: Path) -> Path:
    """The absolute path of the export, by default beside the weights and by their name; of the hub's, in the working folder.

    Raises InputError for another ending, by which readers know a file, and for a path that would replace the weights.
    """
    from models.names import HUB_PREFIX

    name = options.weights.rpartition("/")[2] if options.weights.startswith(HUB_PREFIX) else options.weights
    weights = Path(os.path.abspath(name))  # a link keeps its own name and folder
    stem, ending = weights.stem if weights.is_file() else weights.name, ENDINGS[options.to]
    out = options.out or weights.with_name(stem + ending)
    out = Path(os.path.abspath(out))
    if options.to != "hub" and out.suffix != ending:
        raise InputError(f"{out}: must end in {ending}; give another --out")
    weights_file = weights_file.resolve()
    if out.resolve() in (weights.resolve(), weights_file, *weights_file.parents):
        raise InputError(f"{out}: would replace the weights that are exported; give another --out")
    out.parent.mkdir(parents=True, exist_ok=True)
    return out


@contextmanager
def replacing(out: Path, overwrite: bool, contents: Sequence[str] = ()) -> Iterator[Path]:
    """A temporary path for the new `out`. It is moved to `out` if all goes well, and removed if not.

    contents: the names of the files in a folder; none: `out` is a file.
    Raises InputError if `out` exists without `overwrite`, or holds anything else than such an export.
    """
    if os.path.lexists(out):
        if not overwrite:
            raise InputError(f"{out}: is there already; give --overwrite or another --out")
        others = {path.name for path in out.iterdir()} - set(contents) if out.is_dir() else set()
        if out.is_dir() != bool(contents) or others:
            raise InputError(f"{out}: holds something that no such export has written; give another --out")
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as beside:
        temporary = Path(beside, out.name)
        yield temporary
        if out.is_dir():
            for name in contents:
                os.replace(temporary / name, out / name)
        else:
            os.replace(temporary, out)


if __name__ == "__main__":
    sys.exit(main())
