"""Hand a trained network to other programs: ONNX, torch.export, safetensors, or a folder for the Hugging Face hub."""

from __future__ import annotations

import argparse
import importlib.util
import logging
import os
import signal
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from commands.errors import guarded
from commands.files import to_json
from commands.parser import Parser
from commands.signals import Interrupted
from exporting import onnx_file, torch_files
from exporting.about import describe
from exporting.check import BATCHES, ExportError, largest_difference
from inference.arguments import WEIGHTS, load
from inference.trained import Trained
from option import MODELS, InputError, Option

log = logging.getLogger("eat")

ENDINGS = {"onnx": ".onnx", "torch_export": ".pt2", "safetensors": ".safetensors", "hub": "_hub"}
PACKAGES = {"onnx": ("onnx", "onnxscript", "onnxruntime")}


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, 1 where what was written was not equal to the network, 2 for a bad request."""
    options = parse(argv)

    def work() -> int:
        try:
            print(to_json(export(options)), flush=True)
        except ExportError as error:
            print(f"export.py: {error}", file=sys.stderr)
            return 1
        return 0

    return guarded("export.py", work, rest="nothing was written")


# fmt: off
TABLE = {
    "": (
        Option("to", str, None, "what to write: an .onnx, a .pt2 archive, a .safetensors, or a folder", choices=list(ENDINGS), required=True),
        Option("out", Path, None, "what to call it (default: beside the weights, by their name)", metavar="PATH"),
        Option("overwrite", bool, False, "replace what is there"),
        Option("gather", bool, False, "ONNX without the operator GridSample, for runtimes that lack it"),
        Option("int8", bool, False, "ONNX with 8-bit linear layers: smaller; scores are only nearly equal, and depend on the batch"),
        Option("opset", int, None, f"ONNX operator set, {onnx_file.OPSETS[0]} to {onnx_file.OPSETS[1]} (default: {onnx_file.OPSET})", low=onnx_file.OPSETS[0], high=onnx_file.OPSETS[1]),
    ),
    "weights": WEIGHTS,
}
# fmt: on


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options; exits with status 2 where they are wrong."""
    usage = "export.py --weights FILE --to FORM [OPTION ...]"
    about = (
        "Export trained weights. What is written is read back, fed with photographs as it says itself, and "
        "compared with PyTorch; a file that differs is not left in place. The last line is JSON."
    )
    return Parser(TABLE, prog="export.py", usage=usage, description=about).parse_args(argv)


def export(options: argparse.Namespace) -> dict:
    """Write what is asked for, check it, and say what it is. Raises InputError, WeightsError, ExportError."""
    check(options)
    trained = load(options)
    for note in trained.notes:
        log.warning("%s", note)
    about, out = describe(trained), target(options, trained)
    write, read = {
        "onnx": (onnx_file.write_onnx, onnx_file.open_onnx),
        "torch_export": (torch_files.write_archive, torch_files.open_archive),
        "safetensors": (torch_files.write_safetensors, torch_files.open_safetensors),
        "hub": (torch_files.write_hub, torch_files.open_hub),
    }[options.to]
    kind = {"gather": options.gather, "int8": options.int8, "opset": options.opset or onnx_file.OPSET}
    kind = kind if options.to == "onnx" else {}
    with replacing(out, options.overwrite, options.to == "hub") as temporary, quietly():
        write(trained, temporary, about, **kind)
        found, run = read(temporary)
        difference = largest_difference(trained, found, run, exact=not options.int8)
        size = sum(path.stat().st_size for path in (temporary, *temporary.glob("*")) if path.is_file())
    return {
        "written": str(out),
        "to": options.to,
        **kind,
        **{name: about[name] for name in ("model", "dataset", "score_range", "interest_points")},
        "megabytes": round(size / 1e6, 2),
        "largest_difference": difference,
        "checked_on": f"photographs in batches of {', '.join(map(str, BATCHES))}",
    }


def check(options: argparse.Namespace) -> None:
    """Raises InputError for options that contradict each other, and for packages that are not there."""
    for name in ("gather", "int8", "opset"):
        if getattr(options, name) and options.to != "onnx":
            raise InputError(f"--{name} belongs to --to onnx, not {options.to}")
    missing = [name for name in PACKAGES.get(options.to, ()) if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(
            f"--to {options.to} needs {', '.join(missing)}: pip install -r requirements-export.txt"
        )


def target(options: argparse.Namespace, trained: Trained) -> Path:
    """Where the export goes. Raises InputError for another ending, by which readers know a file, and for the weights."""
    source = Path(options.weights).resolve()
    given = Path(os.path.abspath(options.weights))  # a link's own name and place
    kind = "_gather" * options.gather + "_int8" * options.int8
    stem, ending = given.name if given.is_dir() else given.stem, ENDINGS[options.to]
    out = Path(os.path.abspath(options.out or given.with_name(stem + kind + ending)))
    if options.to == "hub" and out.name in MODELS:
        raise InputError(
            f"{out}: create_model would take it for the network of that name; give another --out"
        )
    if options.to != "hub" and out.suffix != ending:
        raise InputError(f"{out}: must end in {ending}; give another --out")
    if out.resolve() in (source, *trained.path.resolve().parents, trained.path.resolve()):
        raise InputError(f"{out}: would replace the weights that are exported; give another --out")
    return out


@contextmanager
def replacing(out: Path, overwrite: bool, folder: bool) -> Iterator[Path]:
    """A path for what is to become `out`, a file or a folder; put there if all goes well, removed if not.

    Raises InputError where something is there and may not be replaced.
    """
    _refuse_what_is_there(out, overwrite, folder)
    if not out.parent.is_dir():
        raise InputError(f"{out.parent}: no such folder; make it, or give another --out")
    try:
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as beside:
            temporary, replaced = Path(beside) / out.name, Path(beside) / "replaced"
            yield temporary
            _refuse_what_is_there(out, overwrite, folder)  # it took a while
            if folder and out.is_dir():  # a folder is not replaced in one step
                os.replace(out, replaced)
            try:
                os.replace(temporary, out)
            except BaseException:
                if replaced.exists():
                    os.replace(replaced, out)
                raise
    except OSError as error:
        if not error.filename or f".{out.name}." in str(error.filename):  # none: as for a full disk
            error.filename = str(out.parent)
        raise


def _refuse_what_is_there(out: Path, overwrite: bool, folder: bool) -> None:
    if not (out.exists() or out.is_symlink()):
        return
    if not overwrite:
        raise InputError(f"{out}: is there already; give --overwrite or another --out")
    if out.is_dir() != folder:
        what = "a folder" if out.is_dir() else "a file"
        raise InputError(f"{out}: is {what}, which no such export has written; give another --out")
    others = (
        [p.name for p in out.iterdir() if p.name not in torch_files.HUB_FILES or not p.is_file()]
        if folder
        else []
    )
    if others:
        raise InputError(f"{out}: holds {min(others)}, which no export has written; give another --out")


@contextmanager
def quietly() -> Iterator[None]:
    """The exporters' own chatter is about their future, not about this network."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(before)


def interrupted(number: int, _frame) -> None:
    raise Interrupted(number)


if __name__ == "__main__":
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupted)  # what is half-written is removed
    sys.exit(main())
