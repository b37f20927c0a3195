"""``benchmarks run`` that is killed goes on, bit for bit."""

import os
import pathlib
import random
import shutil
import subprocess
import sys
import time

import pytest
from test_resume import results, stored

KILLS = int(os.environ.get("NCG_OPTAX_KILLS", "3"))
SCRIPT = pathlib.Path(__file__).with_name("toy_run.py")


def command(folder):
    """The process of a run, with its output as text."""
    root = str(SCRIPT.parents[2])
    path = os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, SCRIPT, folder],
        env={**os.environ, "PYTHONPATH": path, "TERM": "dumb"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finished(folder):
    worker = command(folder)
    output, _ = worker.communicate(timeout=240)
    assert worker.returncode == 0, output
    return stored(folder)


def killed(folder, delay):
    """Kills a run `delay` seconds after it begins: whether it had not ended before."""
    worker = command(folder)
    try:
        # Importing takes longer than the run: it begins with its folder.
        while worker.poll() is None and not list(folder.glob("toy/*.partial")):
            time.sleep(0.02)
        time.sleep(delay)
    finally:
        worker.kill()
        output, _ = worker.communicate(timeout=60)
    assert worker.returncode in (0, -9), output
    return worker.returncode == -9


@pytest.mark.slow
def test_a_killed_command_ends_as_one_that_was_not(tmp_path):
    expected = finished(tmp_path / "whole")
    folder, delays = tmp_path / "killed", random.Random(0)
    begun, longest = 0, 2.0
    while begun < KILLS:
        if killed(folder, delays.uniform(0, longest)):
            begun += 1
        elif begun:
            break
        else:  # A fast machine had ended before the first kill: from the beginning.
            shutil.rmtree(folder)
            longest /= 2
    found = finished(folder)
    assert results(found) == results(expected)
    assert not list(folder.glob("toy/*.partial"))
