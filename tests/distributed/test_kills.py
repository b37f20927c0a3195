"""A training script that is killed goes on from its checkpoints, bit for bit.

It saves after every step, so that most kills come while it writes.
"""

import os
import random
import re
import subprocess
import sys
import time

import pytest
from test_processes import EXAMPLES, alone
from test_two_processes import environment, free_port

KILLS = int(os.environ.get("NCG_OPTAX_KILLS", "3"))

pytestmark = pytest.mark.slow


def killed(folder, devices, steps, delay):
    """Starts a run and kills it, some time after its first step; its losses."""
    command = [sys.executable, EXAMPLES / "data_parallel.py", "--steps", steps]
    command += ["--checkpoint", folder, "--save-every", 1]
    worker = subprocess.Popen(
        list(map(str, command)),
        env=environment(devices),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    lines = []
    try:
        for line in worker.stdout:
            lines.append(line)
            if line.startswith("step "):
                break
        time.sleep(delay)
    finally:
        worker.kill()  # SIGKILL
        rest = worker.communicate(timeout=60)[0]
    output = "".join(lines) + rest
    assert "step " in output, output
    return {
        int(n): float(v) for n, v in re.findall(r"step (\d+): loss (\S+)\n", output)
    }


def steps_saved(folder):
    return max((int(p.name) for p in folder.glob("*") if p.name.isdecimal()), default=0)


@pytest.mark.parametrize("devices", [1, 4])
def test_a_killed_run_ends_as_one_that_was_not(tmp_path, devices):
    total, delays = 3 * KILLS + 6, random.Random(devices)
    expected = alone("--steps", total, devices=devices)
    found, kills, unfinished = {}, 0, 0
    while kills < KILLS and steps_saved(tmp_path) < total:
        done = steps_saved(tmp_path)
        losses = killed(tmp_path, devices, total - done, delays.uniform(0, 0.3))
        assert min(losses) == done + 1
        found |= losses
        kills += 1
        unfinished += any("tmp" in p.name for p in tmp_path.glob("*"))
    rest = ("--steps", total - steps_saved(tmp_path), "--checkpoint", tmp_path)
    # Each loss is that of what all steps before it have left.
    assert found | alone(*rest, devices=devices) == expected
    print(f"{devices} devices, {kills} kills, {unfinished} of them in a checkpoint")


def test_the_other_process_ends_soon_and_says_why():
    port, processes = free_port(), []
    for index in range(2):
        command = [sys.executable, EXAMPLES / "data_parallel.py", "--steps", 10**6]
        command += ["--coordinator", f"127.0.0.1:{port}"]
        command += ["--processes", 2, "--process", index]
        processes.append(
            subprocess.Popen(
                list(map(str, command)),
                env=environment(devices=1),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    try:
        for line in processes[0].stdout:
            if line.startswith("step "):
                break
        processes[1].kill()
        output, _ = processes[0].communicate(timeout=60)
    finally:
        for process in processes:
            process.kill()
            process.communicate(timeout=60)
    assert processes[0].returncode == 1
    assert "another process has ended" in output
