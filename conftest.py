"""How pytest runs here: where compiled programs are kept, and what shares a process."""

import importlib.metadata
import os
import pathlib

import pytest

# Nine tenths of the time of a test is XLA's. Without LLVM's optimisations, and with the
# older of the two code generators that these versions have for CPUs, it takes a
# quarter; results differ by rounding. A version without such a flag would end the
# process.
if importlib.metadata.version("jaxlib").startswith(("0.8.", "0.9.", "0.10.")):
    FLAGS = (
        "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    )
else:
    FLAGS = ""

# These share one process with four devices (see tests/distributed/conftest.py).
ONE_PROCESS = "tests/distributed/"


def pin_to_one_core():
    """Gives a worker of pytest-xdist a core of its own, where the system can.

    JAX starts as many threads as there are cores. Where several processes do, the
    threads wait for each other: an eigendecomposition took 300 times as long.
    """
    worker = os.environ.get("PYTEST_XDIST_WORKER", "").removeprefix("gw")
    if worker and hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[int(worker) % len(cores)]})


def prepare_jax():
    """Makes JAX compile fast, and keep all compiled programs on disk for the next run.

    The environment tells it, so that processes which tests start do the same. What is
    set by hand stays. JAX looks a program up by its text, the versions, the flags and
    the features of the processor; what it cannot read (a process was killed while it
    wrote) it compiles.
    """
    caches = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    for name, value in {
        "JAX_COMPILATION_CACHE_DIR": str(pathlib.Path(caches, "ncg_optax-tests")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "XLA_FLAGS": FLAGS,
    }.items():
        os.environ.setdefault(name, value)


# Before JAX is imported, which reads the environment then.
pin_to_one_core()
prepare_jax()


def unit_of_work(nodeid):
    """What one worker runs as a whole: a file, or all tests with four devices."""
    return ONE_PROCESS if nodeid.startswith(ONE_PROCESS) else nodeid.partition("::")[0]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """``--dist loadfile``, with all tests of ``ONE_PROCESS`` on one worker."""
    if config.getoption("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid):
            return unit_of_work(nodeid)

    return Scheduling(config, log)
