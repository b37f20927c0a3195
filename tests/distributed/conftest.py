"""Runs the tests of this folder in a process of their own with four devices.

The number of devices is fixed when JAX starts its backend, so they cannot run in a
process where other tests may have done that. The outer pytest collects them as usual,
runs all selected tests of this folder in one inner pytest, which compiles what they
share once, and reports what that reported. The conftest.py of the root keeps them on
one worker of pytest-xdist.
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile

import pytest

# Not for doctests: they import it as a module named like the other folders' conftest.
collect_ignore = ["conftest.py"]

HERE = pathlib.Path(__file__).parent
DEVICES = "--xla_force_host_platform_device_count=4"
INSIDE = "NCG_OPTAX_INNER_REPORTS" in os.environ

REPORTS = pytest.StashKey[tuple[dict, str]]()


def pytest_runtest_protocol(item, nextitem):
    # pytest asks about the items of other folders as well.
    if INSIDE or HERE not in item.path.parents:
        return None
    if REPORTS not in item.config.stash:
        nodes = [i.nodeid for i in item.session.items if HERE in i.path.parents]
        item.config.stash[REPORTS] = run_inside(item.config, nodes)
    by_node, output = item.config.stash[REPORTS]
    hook = item.ihook
    hook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for data in by_node.get(item.nodeid, []):
        report = hook.pytest_report_from_serializable(config=item.config, data=data)
        hook.pytest_runtest_logreport(report=report)
    if item.nodeid not in by_node:
        report = pytest.TestReport(
            item.nodeid, item.location, {}, "failed", output, "call"
        )
        hook.pytest_runtest_logreport(report=report)
    # What the last test outside of this folder left set up for its neighbours.
    item.session._setupstate.teardown_exact(nextitem)
    hook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def run_inside(config, nodes):
    """The reports of an inner pytest by node, and its output."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "reports")
        environment = {
            "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {DEVICES}",
            "JAX_ENABLE_X64": "1",
            "NCG_OPTAX_INNER_REPORTS": path,
        }
        # These are selected already, slow ones too.
        options = ["-p", "no:cacheprovider", "-m", ""]
        run = subprocess.run(
            [sys.executable, "-m", "pytest", *options, *nodes],
            cwd=config.rootpath,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
        )
        by_node = {}
        if os.path.exists(path):
            with open(path) as lines:
                for data in map(json.loads, lines):
                    by_node.setdefault(data["nodeid"], []).append(data)
    return by_node, run.stdout + run.stderr


def pytest_configure(config):
    if INSIDE:
        config.pluginmanager.register(Recorder(config))


class Recorder:
    """Writes the reports of the inner pytest to a file, a line each."""

    def __init__(self, config):
        self.config = config

    def pytest_runtest_logreport(self, report):
        data = self.config.hook.pytest_report_to_serializable(
            config=self.config, report=report
        )
        with open(os.environ["NCG_OPTAX_INNER_REPORTS"], "a") as lines:
            lines.write(json.dumps(data) + "\n")
