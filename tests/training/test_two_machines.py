"""Two machines: namespaces of the kernel with a host name, a loopback and processes of their own, joined by a cable."""

import json
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from helpers.data import arguments
from helpers.runs import ENOUGH, LOST, ROOT, SMALL_RUN, TORCHRUN, metrics, two_processes

RECIPE = {"init_lr": 1e-3, "num_epoch": 8, "batch_size": 2, "save_minutes": 0}
TOOLS = ("unshare", "nsenter", "ip", "sysctl")
SPACES = ("--net", "--uts", "--mount", "--pid")
LIFETIME = 900  # seconds; nothing stays for ever, even where a test is killed


class Machine:
    """One that is switched on. Its address is 10.0.0.NUMBER; its name resolves to nothing."""

    def __init__(self, name, number):
        self.name, self.address, self.number = name, f"10.0.0.{number}", number
        boot = f"hostname {name} && ip link set lo up && echo up && exec sleep {LIFETIME}"
        command = ["unshare", "--fork", "--kill-child", "--mount-proc", *SPACES, "sh", "-c", boot]
        self.power = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        if self.power.stdout.readline() != "up\n":
            pytest.skip(f"this system allows no namespaces: {self.power.communicate()[1].strip()}")
        self.init = Path(f"/proc/{self.power.pid}/task/{self.power.pid}/children").read_text().strip()

    def do(self, *command, start=subprocess.check_call, **given):
        """Run a command on it, in the repository's folder."""
        return start(["nsenter", "--target", self.init, *SPACES, "env", "-C", str(ROOT), *command], **given)

    def torchrun(self, words, log):
        """Its part of a run, as docs/training.md says it; what it tells goes to `log`."""
        rendezvous = ["--rdzv_backend=c10d", "--rdzv_endpoint=10.0.0.1:29500", f"--local_addr={self.address}"]
        rendezvous += [f"--rdzv_conf=is_host={'true' if self.number == 1 else 'false'}"]
        command = [*TORCHRUN, "--nnodes=2", "--nproc_per_node=1", *rendezvous, SMALL_RUN, *map(str, words)]
        given = {"stdout": log.open("w"), "stderr": subprocess.STDOUT, "start": subprocess.Popen}
        environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "eth0"}
        return self.do(*command, env=environment, **given)

    def off(self):
        """Every process of it is killed at once."""
        self.power.kill()
        self.power.communicate()


def connect(first, second):
    cable = ["ip", "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", second.init]
    # Not by `do`: numbers of processes are ours.
    subprocess.check_call(["nsenter", "--target", first.init, "--net", *cable])
    for machine in (first, second):
        machine.do("ip", "address", "add", f"{machine.address}/24", "dev", "eth0")
        machine.do("ip", "link", "set", "eth0", "up")


@pytest.fixture
def machine():
    """machine(name, number) switches one on; all are off when the test ends."""
    if missing := [tool for tool in TOOLS if shutil.which(tool) is None]:
        pytest.skip(f"no {missing[0]} is here, which makes the machines")
    machines = []

    def on(*given):
        machines.append(Machine(*given))
        return machines[-1]

    yield on
    for one in machines:
        one.off()


def saved_again(last, runs, times=2):
    """Wait until last.pt is written so many times."""
    seen = set()
    while len(seen) < times and all(run.poll() is None for run in runs):
        if last.exists():
            seen.add(last.stat().st_mtime_ns)
        time.sleep(0.02)


def lines(log):
    return [line for line in log.read_text().splitlines() if line.startswith("main_nni.py: ")]


@pytest.mark.slow
def test_the_cable_is_lost_and_the_run_goes_on_to_the_same_result(ava, run, machine):
    """The run's folder is on a disk that the first machine alone sees; there every start finds it."""
    status, whole, err = two_processes(ava, arguments(ava, **RECIPE, experiment_dir_name=ava / "whole"))
    assert status == 0, err
    runs = ava / "runs"
    runs.mkdir()
    folder, logs = runs / "run", [ava / "first.log", ava / "second.log"]
    last = folder / "checkpoints" / "last.pt"
    resume = ["--resume", "--experiment_dir_name", folder]
    end = f"; --resume --experiment_dir_name {folder} goes on from the last checkpoint"

    def assert_lost(rank):
        [line] = lines(logs[rank])
        assert line.startswith(f"main_nni.py: rank {rank}: {LOST}")
        assert line.endswith(end) == (rank == 0)  # the second machine does not see the folder

    def start(words):
        return [one.torchrun(words, log) for one, log in zip(pair, logs, strict=True)]

    pair = [machine("first", 1), machine("second", 2)]
    pair[1].do("mount", "-t", "tmpfs", "-o", "ro", "none", str(runs))
    connect(*pair)
    both = start(arguments(ava, **RECIPE, experiment_dir_name=folder))
    saved_again(last, both)
    for one in (
        pair
    ):  # Linux sends again what nobody acknowledges: 15 times take a quarter of an hour, 3 times seconds
        one.do("sysctl", "-q", "-w", "net.ipv4.tcp_retries2=3")
    pair[1].do("ip", "link", "set", "eth0", "down")
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not all(map(lines, logs)):
        time.sleep(0.1)
    told = [rank for rank in (0, 1) if lines(logs[rank])]
    assert told
    for rank in told:
        assert_lost(rank)
        assert both[rank].wait(ENOUGH) != 0
    for rank in {0, 1} - {
        *told
    }:  # it has sent all, and waits for the other up to the group's timeout of two hours
        subprocess.run(["nsenter", "--target", pair[rank].init, *SPACES, "pkill", "-9", "-f", str(SMALL_RUN)])
        assert both[rank].wait(ENOUGH) != 0
    assert json.loads((folder / "run.json").read_text())["status"] == ("failed" if 0 in told else "running")

    pair[1].do("ip", "link", "set", "eth0", "up")
    both = start(resume)
    assert [one.wait(ENOUGH) for one in both] == [0, 0], logs[0].read_text() + logs[1].read_text()
    results = [[json.loads(x) for x in log.read_text().splitlines() if x.startswith("{")] for log in logs]
    assert [len(found) for found in results] == [1, 0]
    assert metrics(results[0][0]) == metrics(whole)
    best = {"eval": True, "path_to_model_weight": folder / "checkpoints" / "best.pth"}
    given = {"eval_batch_size": 2, "experiment_dir_name": ava / "alone"}
    _, alone, _ = run(arguments(ava, **best, **given))
    assert metrics(alone) == pytest.approx(metrics(whole), rel=1e-6, nan_ok=True)
