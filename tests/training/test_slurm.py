"""configs/slurm.sh where stand-ins take the place of Slurm: srun starts two processes here, scontrol notes what it is asked."""

import os
import signal
import subprocess

import pytest
from helpers.runs import ENOUGH, ROOT, until

SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do shift; done
trap 'kill -TERM $(jobs -p)' TERM
for number in 0 1; do
    SLURM_PROCID=$number SLURM_LOCALID=$number SLURM_NTASKS=2 "$@" &
    tasks+=($!)
done
highest=0
for task in "${tasks[@]}"; do
    wait $task; status=$?
    while kill -0 $task 2> /dev/null; do wait $task; status=$?; done
    (( status > highest )) && highest=$status
done
exit $highest
"""
SCONTROL = '#!/bin/bash\nif [ $1 = show ]; then echo 127.0.0.1; else echo "$@" >> scontrol.log; fi\n'
# It works until it is asked to end, and leaves a checkpoint; what is resumed is done at once.
PYTHON = """#!/bin/bash
trap 'mkdir -p runs/slurm-7/checkpoints; touch runs/slurm-7/checkpoints/last.pt; exit 143' TERM
echo "$RANK/$WORLD_SIZE $LOCAL_RANK $MASTER_ADDR:$MASTER_PORT $*" >> started.log
case "$*" in *--resume*) exit 0;; *--fail*) exit 1;; esac
while true; do sleep 0.02; done
"""
JOB = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "first", "SLURM_CPUS_PER_TASK": "1", "OMP_NUM_THREADS": "1"}


@pytest.fixture
def sbatch(tmp_path):
    """sbatch(*words): the script as Slurm starts it, with a program in place of Python."""
    started = []

    def start(*words):
        for name, text in (("srun", SRUN), ("scontrol", SCONTROL), ("python", PYTHON)):
            (tmp_path / "bin").mkdir(exist_ok=True)
            (tmp_path / "bin" / name).write_text(text)
            (tmp_path / "bin" / name).chmod(0o755)
        environment = os.environ | JOB | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
        given = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        command = ["bash", str(ROOT / "configs" / "slurm.sh"), *map(str, words)]
        started.append(
            subprocess.Popen(command, cwd=tmp_path, env=environment, start_new_session=True, **given)
        )
        return started[-1]

    yield start
    for job in started:
        if job.poll() is None:
            os.killpg(job.pid, signal.SIGKILL)
        job.communicate()


def log(tmp_path, name):
    path = tmp_path / name
    return sorted(path.read_text().splitlines()) if path.exists() else []


def test_two_minutes_before_its_end_a_job_saves_queues_itself_again_and_then_goes_on(sbatch, tmp_path):
    job = sbatch("--dataset", "ava", "--path_to_images", "a b")
    until(lambda: len(log(tmp_path, "started.log")) == 2, job)
    job.send_signal(signal.SIGUSR1)  # to the script alone, as `--signal=B:USR1@120` does
    assert job.wait(ENOUGH) == 143
    assert log(tmp_path, "scontrol.log") == ["requeue 7"]
    words = "main_nni.py --dataset ava --path_to_images a b --experiment_dir_name runs/slurm-7 --overwrite"
    assert log(tmp_path, "started.log") == [f"{n}/2 {n} 127.0.0.1:10007 {words}" for n in (0, 1)]
    (tmp_path / "started.log").unlink()
    job = sbatch("--dataset", "ava", "--path_to_images", "a b")
    assert job.wait(ENOUGH) == 0
    words = "main_nni.py --resume --experiment_dir_name runs/slurm-7"
    assert log(tmp_path, "started.log") == [f"{n}/2 {n} 127.0.0.1:10007 {words}" for n in (0, 1)]
    assert log(tmp_path, "scontrol.log") == ["requeue 7"]


def test_a_job_that_fails_by_itself_is_not_queued_again(sbatch, tmp_path):
    assert sbatch("--fail").wait(ENOUGH) == 1
    assert log(tmp_path, "scontrol.log") == []
