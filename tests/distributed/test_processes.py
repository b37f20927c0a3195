"""The example of the documentation, run by several processes and by one."""

import concurrent.futures
import pathlib
import re
import subprocess
import sys

import pytest
from test_two_processes import environment, free_port

EXAMPLES = pathlib.Path(__file__).parents[2] / "docs" / "examples"

pytestmark = pytest.mark.slow


def run(command, devices, timeout=240):
    """Exit code and output of a command whose processes have so many devices."""
    done = subprocess.run(
        list(map(str, command)),
        env={**environment(devices), "PYTHON": sys.executable},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
    )
    return done.returncode, done.stdout


def losses(command, devices):
    code, output = run(command, devices)
    assert code == 0, output
    return {int(n): float(v) for n, v in re.findall(r"step (\d+): loss (\S+)", output)}


def alone(*options, devices=1):
    script = EXAMPLES / "data_parallel.py"
    return losses([sys.executable, script, *options], devices)


def two(*options, devices=2):
    script = EXAMPLES / "data_parallel.py"
    return losses([EXAMPLES / "launch.sh", 2, script, *options], devices)


def test_two_processes_and_a_checkpoint_for_one(tmp_path):
    """Saved by two, continued by one, saved again and continued by two."""
    expected = alone("--steps", 9)
    assert expected[9] < 0.1 * expected[1]
    found = two("--steps", 3, "--checkpoint", tmp_path)
    found |= alone("--steps", 3, "--checkpoint", tmp_path, devices=3 + 1)
    found |= two("--steps", 3, "--checkpoint", tmp_path)
    # hessian_free's eigendecompositions amplify rounding; two_processes.py has 1e-12.
    assert found == pytest.approx(expected, rel=1e-9)


def test_a_checkpoint_that_was_not_finished_is_not_read(tmp_path):
    """As a run leaves it that is killed while it saves."""
    expected = alone("--steps", 4)
    found = alone("--steps", 2, "--checkpoint", tmp_path)
    (tmp_path / "8.orbax-checkpoint-tmp").mkdir()
    found |= alone("--steps", 2, "--checkpoint", tmp_path)
    assert found == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    "differing, message",
    [(("--seed", 0, 1), "settings"), (("--batch", 64, 96), "shapes")],
    ids=["seed", "batch"],
)
def test_processes_that_differ_are_told(differing, message):
    """On each of them, where they would wait for each other for ever."""
    name, *values = differing
    port = free_port()
    script = EXAMPLES / "data_parallel.py"
    with concurrent.futures.ThreadPoolExecutor() as pool:
        common = [sys.executable, script, "--coordinator", f"127.0.0.1:{port}"]
        runs = [
            pool.submit(
                run,
                [*common, "--processes", 2, "--process", index, name, value],
                devices=1,
                timeout=120,
            )
            for index, value in enumerate(values)
        ]
    for code, output in (r.result() for r in runs):
        assert code != 0
        assert re.search(rf"{message}.* must be the same on all processes", output), (
            output
        )
