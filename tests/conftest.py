"""How pytest is set up here. What the tests share is in helpers/fixtures.py, which takes seconds to import."""

import os
import signal

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # the cores are the workers'; torch reads it when it is imported
    os.environ["OMP_NUM_THREADS"] = "1"

os.environ["HYPOTHESIS_NO_PLUGINS"] = "1"  # trio's, which is selenium's, cannot be told from garbage

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it


@pytest.hookimpl(optionalhook=True)  # tests/test_gpu.py runs without xdist
def pytest_xdist_auto_num_workers(config):
    """One more than there are cores, up to four: many tests wait for processes that they have started."""
    return min(4, (os.cpu_count() or 1) + 1)


def pytest_configure(config):
    """All but the process that only hands out tests have the fixtures."""
    if not any("test_gpu.py" in word for word in config.args):  # where torch has seen one, no fork can train
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        os.environ["TRITON_INTERPRET"] = "1"  # Triton reads it when a kernel's module is imported
    if hasattr(config, "workerinput") or not getattr(config.option, "numprocesses", None):
        config.pluginmanager.import_plugin("helpers.fixtures")


def pytest_collection_modifyitems(items):
    """What waits longest, for torchrun and nnictl, comes first, beside the rest."""
    items.sort(key=lambda item: item.path.stem not in ("test_two_machines", "test_nni"))
