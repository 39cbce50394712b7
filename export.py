"""Hand a trained network to other programs: ONNX, safetensors, or a folder for the Hugging Face hub."""

from __future__ import annotations

import argparse
import gc
import importlib.util
import logging
import os
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

if __name__ == "__main__":
    gc.disable()  # none of what is imported is garbage; to look for some is a third of the start

from commands.errors import guarded
from commands.files import to_json
from commands.parser import Parser
from commands.signals import Interrupted
from exporting import onnx_file, torch_files
from exporting.about import describe
from exporting.check import BATCHES, ExportError, largest_difference
from inference.arguments import WEIGHTS, load
from inference.trained import Trained
from option import InputError, Option

log = logging.getLogger("eat")

ENDINGS = {"onnx": ".onnx", "safetensors": ".safetensors", "hub": "_hub"}
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
        Option("to", str, None, "what to write: an .onnx, a .safetensors, or a folder", choices=list(ENDINGS), required=True),
        Option("out", Path, None, "what to call it (default: beside the weights, by their name)", metavar="PATH"),
        Option("overwrite", bool, False, "replace what is there"),
        Option("gather", bool, False, "ONNX without the operator GridSample, for runtimes that lack it"),
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
        "safetensors": (torch_files.write_safetensors, torch_files.open_safetensors),
        "hub": (torch_files.write_hub, torch_files.open_hub),
    }[options.to]
    kind = {"gather": options.gather} if options.to == "onnx" else {}
    with replacing(out, options.overwrite, options.to == "hub") as temporary:
        write(trained, temporary, about, **kind)
        found, run = read(temporary)
        difference = largest_difference(trained, found, run)
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
    if options.gather and options.to != "onnx":
        raise InputError(f"--gather belongs to --to onnx, not {options.to}")
    missing = [name for name in PACKAGES.get(options.to, ()) if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(
            f"--to {options.to} needs {', '.join(missing)}: pip install -r requirements/export.txt"
        )


def target(options: argparse.Namespace, trained: Trained) -> Path:
    """Where the export goes. Raises InputError for another ending, by which readers know a file, and for the weights."""
    source = Path(options.weights).resolve()
    given = Path(os.path.abspath(options.weights))  # a link's own name and place
    stem, ending = given.name if given.is_dir() else given.stem, ENDINGS[options.to]
    stem += "_gather" * options.gather
    out = Path(os.path.abspath(options.out or given.with_name(stem + ending)))
    if options.to != "hub" and out.suffix != ending:
        raise InputError(f"{out}: must end in {ending}; give another --out")
    if out.resolve() in (source, *trained.path.resolve().parents, trained.path.resolve()):
        raise InputError(f"{out}: would replace the weights that are exported; give another --out")
    return out


@contextmanager
def replacing(out: Path, overwrite: bool, folder: bool) -> Iterator[Path]:
    """A path for the new content of `out`, a file or a folder; put there if all goes well, removed if not.

    Raises InputError where something is there and may not be replaced.
    """
    if not out.parent.is_dir():
        raise InputError(f"{out.parent}: no such folder; make it, or give another --out")
    refuse_to_replace(out, overwrite, folder)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as beside:
        temporary = Path(beside) / out.name
        yield temporary
        refuse_to_replace(out, overwrite, folder)  # it took a while
        if folder and out.is_dir():  # a folder is not replaced in one step
            os.replace(out, Path(beside) / "replaced")
        os.replace(temporary, out)


def refuse_to_replace(out: Path, overwrite: bool, folder: bool) -> None:
    """Raises InputError where `out` is there and is no export, or may not be replaced."""
    if not (out.exists() or out.is_symlink()):
        return
    if not overwrite:
        raise InputError(f"{out}: is there already; give --overwrite or another --out")
    if out.is_dir() != folder:
        kind = "a folder" if out.is_dir() else "a file"
        raise InputError(f"{out}: is {kind}, which no such export has written; give another --out")
    if folder and (others := {path.name for path in out.iterdir()} - set(torch_files.HUB_FILES)):
        raise InputError(f"{out}: holds {min(others)}, which no export has written; give another --out")


def interrupted(number: int, _frame) -> None:
    raise Interrupted(number)


if __name__ == "__main__":
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupted)  # what is half-written is removed
    sys.exit(main())
