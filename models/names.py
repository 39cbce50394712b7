"""Names of weights: of a file, a folder, a repository of the Hugging Face hub, or a network in `weights/`."""

from __future__ import annotations

import os
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.utils import tqdm

from iaa.suggestions import suggest

from .weights_file import WeightsError

FOLDER_PREFIX, HUB_PREFIX = "local-dir:", "hf-hub:"  # timm's
CONFIG, WEIGHTS = "config.json", "model.safetensors"  # Hugging Face's names, and timm's
FOLDER_FILES = (WEIGHTS, "pytorch_model.bin", "checkpoints/best.pth")  # Hugging Face's, a run's
SHIPPED = Path(__file__).parents[1] / "weights"


def resolve(name: str | os.PathLike) -> Path:
    """The file or folder that a name of weights means.

    name: a path, `local-dir:FOLDER`, or `hf-hub:OWNER/NAME`, also with `@REVISION`; if no file has that name, the last word
    of a file's name in `weights/`, as `biq2021`. Raises WeightsError.
    """
    name = str(name)
    if name.startswith(HUB_PREFIX):
        return fetch(name)
    path = Path(name.removeprefix(FOLDER_PREFIX))
    if path.is_file() or path.is_dir():
        return path
    shipped = {file.stem.rpartition("_")[2]: file for file in SHIPPED.glob("*.safetensors")}
    if name in shipped:
        return shipped[name]
    raise WeightsError(f"{path}: no such weights file{suggest(name, shipped)}")


class TerminalBar(tqdm):
    """The hub's progress bar, which is drawn on a terminal only."""

    def __init__(self, *values, **settings):
        super().__init__(*values, **settings | {"disable": None, "leave": False})


def fetch(name: str) -> Path:
    """The folder with a repository's config.json and *.safetensors, in the hub's cache, which also works offline."""
    repository, _, revision = name.removeprefix(HUB_PREFIX).partition("@")
    settings = {"allow_patterns": [CONFIG, "*.safetensors"], "tqdm_class": TerminalBar}
    try:
        return Path(snapshot_download(repository, revision=revision or None, **settings))
    except RepositoryNotFoundError:
        problem = "no such repository, or a private one, for which HF_TOKEN must be set"
    except RevisionNotFoundError:
        problem = "the repository has no such revision"
    except LocalEntryNotFoundError:
        problem = "the hub cannot be reached or fails, and its cache on this machine lacks these weights"
    except Exception as error:  # a failed transfer has many names
        problem = f"cannot be fetched ({type(error).__name__}: {error})"
    raise WeightsError(f"{name}: {problem}")


def find_weights_file(name: str | os.PathLike) -> Path:
    """The file that a name of weights means; in a folder the first of FOLDER_FILES. Raises WeightsError."""
    path = resolve(name)
    if path.is_file():
        return path
    for file in FOLDER_FILES:
        if (path / file).is_file():
            return path / file
    raise WeightsError(f"{name}: a folder without {', '.join(FOLDER_FILES)}")
