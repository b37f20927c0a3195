"""``benchmarks run`` that is killed goes on, bit for bit."""

import os
import pathlib
import random
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


@pytest.mark.slow
def test_a_killed_command_ends_as_one_that_was_not(tmp_path):
    expected = finished(tmp_path / "whole")
    folder, delays = tmp_path / "killed", random.Random(0)
    begun = 0
    for _ in range(KILLS):
        worker = command(folder)
        try:
            # Importing takes longer than the run: it begins with its folder.
            while worker.poll() is None and not list(folder.glob("toy/*.partial")):
                time.sleep(0.02)
            time.sleep(delays.uniform(0, 2.0))
        finally:
            worker.kill()
            output, _ = worker.communicate(timeout=60)
        begun += worker.returncode == -9
        if (folder / "toy" / "sgd.json").exists():
            break
    assert begun, output
    found = finished(folder)
    assert results(found) == results(expected)
    assert not list(folder.glob("toy/*.partial"))
    print(f"{begun} kills")
