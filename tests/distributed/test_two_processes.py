"""Two processes that talk over the loopback interface equal one."""

import os
import pathlib
import socket
import subprocess
import sys

import pytest

WORKER = pathlib.Path(__file__).with_name("two_processes.py")


def environment(devices):
    """Of a process with so many devices; the last flag of a name counts."""
    flag = f"--xla_force_host_platform_device_count={devices}"
    return {
        **os.environ,
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flag}",
        "JAX_PLATFORMS": "cpu",
        "JAX_ENABLE_X64": "1",
    }


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.mark.slow
def test_two_processes_equal_one():
    port = str(free_port())
    workers = [
        subprocess.Popen(
            [sys.executable, WORKER, port, str(index)],
            env=environment(devices=2),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in range(2)
    ]
    try:
        outputs = [worker.communicate(timeout=240)[0] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    assert [worker.returncode for worker in workers] == [0, 0], "\n".join(outputs)
    for output in outputs:
        assert output.count("shard_map") == 2
        assert output.count("make_train_step") == 1
        assert output.count("refused") == 2
