"""What long work shows where there is no terminal."""

import logging
import os
import re
import signal
import time

import pytest

from iaa.runtime import progress
from iaa.runtime.signals import StopSignal


@pytest.mark.parametrize(
    ("images", "line"),
    [
        (200, "epoch 3: 60 of 200 images, R images/s, T left, loss 0.5"),
        (None, "epoch 3: 60 images, R images/s, loss 0.5"),
    ],
)
def test_a_line_now_and_then_says_how_far_the_work_is(monkeypatch, caplog, images, line):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(progress, "FIRST", 0.05)
    monkeypatch.setattr(progress, "EVERY", 0.1)
    with progress.progress_bar("epoch 3", images, done=50) as bar:
        bar.update(10)
        bar.set_postfix_str("loss 0.5")
        while len(caplog.messages) < 2:
            time.sleep(0.01)
    count = len(caplog.messages)
    assert re.sub(r"\d+\.\d\d images/s", "R images/s", caplog.messages[1]).replace("00:02", "T") == line
    time.sleep(0.2)
    assert len(caplog.messages) == count


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_acknowledged_at_once(number, capfd):
    with StopSignal() as stop:
        os.kill(os.getpid(), number)
        assert stop.received == number
    heard = f"{number.name}: ending after the current step; again: at once"
    assert capfd.readouterr().err.split("\n") == ["", heard, ""]
