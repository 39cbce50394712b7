"""Processes of a test's own."""

import os
import sys
import traceback
from multiprocessing import forkserver

import torch


def fork(work, output=os.devnull) -> int:
    """Do it in a process of its own that leads a group, sooner than a new interpreter would start; its number."""
    if child := os.fork():
        return child
    os.setsid()
    status = 70
    try:
        torch.set_num_threads(1)  # those of before did not come along
        forkserver._forkserver.__init__()  # a process of its own has a server of its own
        sys.stdout = sys.stderr = open(output, "w")  # noqa: SIM115  ends with the process
        status = work()
        sys.stderr.flush()
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(status or 0)


def ended(child: int) -> int:
    """The exit status of a forked process, or the negative number of the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
