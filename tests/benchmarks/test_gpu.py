"""The measurement on a GPU: its parts, its budget, its tables; a dry run on a CPU."""

import json
import os
import pathlib
import subprocess
import sys
from types import SimpleNamespace

import jax
import pytest
from typer.testing import CliRunner

from benchmarks.commands import app
from benchmarks.measurements import gpu
from benchmarks.reports import scaling as report
from benchmarks.scaling import measure as scaling
from benchmarks.scaling.measure import Spec
from benchmarks.scaling.models import MODELS, STOCHASTIC

ROOT = pathlib.Path(__file__).resolve().parents[2]


def numbers(spec):
    """What a worker returns."""
    return {
        "machine": {"device": "a GPU"},
        "backend": "gpu",
        "weights": 10,
        "compile_seconds": 20.0,
        "seconds": 0.05,
        "all_seconds": [0.05],
        "complete": True,
        "losses": [3.0, 2.0] if spec.optimizer == gpu.TF32 else [3.0, 2.5, 1.0],
        "gradient_equivalents": 7.0,
        "preconditioner_share": None if spec.optimizer in ("adam", "soap") else 0.25,
        "peak_bytes": 3e9,
    }


@pytest.fixture
def clock(monkeypatch):
    """A clock that only workers move, by 30 seconds each."""
    now, asked = [0.0], []

    def run(spec, timeout):
        asked.append((spec, timeout))
        now[0] += 30
        return numbers(spec)

    times = {"monotonic": lambda: now[0], "time": lambda: 1000 + now[0]}
    monkeypatch.setattr(gpu, "time", SimpleNamespace(**times))
    monkeypatch.setattr(scaling, "run", run)
    return asked


def invoke(*args):
    env = {"COLUMNS": "80", "TERM": "dumb", "NO_COLOR": "1"}
    return CliRunner().invoke(app, ["gpu", *map(str, args)], env=env)


def test_parts():
    parts = gpu.parts()
    by_model = {}
    for part in parts:
        by_model.setdefault(part.model, set()).add((part.optimizer, part.batch))
    others = {(STOCHASTIC, 512), ("adam", 512), ("soap", 512)}
    full = {("hessian_free", 4000), ("hessian_free_tf32", 4000)}
    assert by_model["mlp"] == full | others
    assert by_model["transformer_512"] == {(name, 64) for name in gpu.OPTIMIZERS}
    assert by_model["resnet50"] == {(name, 512) for name in gpu.OPTIMIZERS}
    for part, small in zip(parts, gpu.parts(small=True), strict=True):
        assert small.optimizer == part.optimizer
        one, other = (
            jax.eval_shape(lambda m=MODELS[m]: m.init(0))
            for m in (small.model, part.model)
        )
        assert 20 * count(one) < count(other)


def count(shapes):
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def test_the_budget_bounds_every_part(clock):
    said = []
    found = gpu.measure(gpu.parts(), budget=110, progress=said.append)
    status = [part["status"] for part in found["parts"]]
    # Three of 30 seconds; then the 20 that are left are too few.
    assert status[:4] == 3 * ["measured"] + ["skipped: 20 s were left"]
    assert all(text.startswith("skipped: 20 s") for text in status[4:])
    assert len(status) == len(gpu.parts())
    assert found["seconds"] == 90 and found["machine"] == {"device": "a GPU"}
    for (spec, timeout), start in zip(clock, (0, 30, 60), strict=True):
        assert timeout == min(75, 110 - start)
        assert spec.deadline == 1000 + start + timeout - gpu.ENDING
        assert spec.share and spec.devices == 1
    assert "  30 s  mlp, hessian_free_tf32" in said
    assert all(len(line) < 80 for line in said)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (subprocess.TimeoutExpired("x", 75.0), "failed: not done within 75 s"),
        (RuntimeError("a worker failed: RESOURCE_EXHAUSTED: 9 GB\nx"), "out of memory"),
        (RuntimeError("a worker failed: first line\nthe last line"), "the last line"),
    ],
)
def test_a_part_that_fails_is_told(error, status, monkeypatch):
    def run(spec, timeout):
        raise error

    monkeypatch.setattr(scaling, "run", run)
    found = gpu.measure(gpu.parts()[:1])
    (part,) = found["parts"]
    assert part["status"].endswith(status) and "seconds" not in part
    assert found["machine"] == {}


def test_the_command_writes_what_the_page_shows(clock, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "backend", lambda: "gpu")
    done = invoke("--budget", 130, "--output", tmp_path)
    assert done.exit_code == 0, done.output
    record = json.loads((tmp_path / "gpu.json").read_text("utf8"))
    assert record["command"] == "python -m benchmarks gpu --budget 130"
    assert record["machine"] == {"device": "a GPU"} and "jax" in record["versions"]
    assert record["parts"][0]["losses"] == [3.0, 2.5, 1.0]
    text = report.part("gpu", tmp_path)
    assert text in done.output
    assert "| hessian_free | 4000 | 50 ms | 7.0 | 25 % | 3.0 GB | 20 s |" in text
    assert "| soap | 512 | skipped: 10 s were left |  |" in text
    assert "Loss after 1 steps: 2 in TF32, 2.5 in float32." in text
    assert "Made-up data, a GPU, 120 s in all." in text
    assert all(len(line) <= 80 for line in text.splitlines())
    record["parts"][0]["complete"] = False
    assert "| hessian_free | 4000 | 50 ms (cut short) |" in report.gpu(record)


def test_without_a_gpu(tmp_path):
    done = invoke("--output", tmp_path)  # asks JAX, which finds a CPU in the tests
    assert done.exit_code == 2
    assert done.output.strip().endswith("--small tries it on a CPU.")
    assert not list(tmp_path.iterdir())


def test_a_step_stops_at_its_deadline():
    late = scaling.measure(Spec("tiny", "adam", 64, 1, deadline=0.0))
    assert len(late["losses"]) == len(late["all_seconds"]) == 1
    assert not late["complete"] and late["preconditioner_share"] is None
    early = scaling.measure(Spec("tiny", "adam", 64, 1, steps=3))
    assert (len(early["losses"]), len(early["all_seconds"])) == (8, 3)
    assert early["complete"] and early["losses"][-1] < early["losses"][0]
    assert early["bytes"] == 0


@pytest.mark.slow
def test_the_share_of_the_preconditioner():
    spec = Spec("tiny", STOCHASTIC, 64, 1, steps=2, share=True)
    found = scaling.measure(spec)
    assert len(found["losses"]) == scaling.SETTLING + 2
    assert found["preconditioner_share"] > 0
    assert found["losses"][-1] < found["losses"][0]


@pytest.mark.slow
def test_dry_run(tmp_path):
    """The script, with tiny shapes: everything but the numbers."""
    # On one core: the threads of a decomposition wait for each other on several.
    core = ["taskset", "-c", str(min(os.sched_getaffinity(0)))]
    command = [*core, "bash", "benchmarks/gpu.sh", "--small"]
    command += ["--output", str(tmp_path)]
    env = os.environ | {"PYTHON": sys.executable}
    subprocess.run(command, cwd=ROOT, env=env, check=True, timeout=500)
    record = json.loads((tmp_path / "gpu_small.json").read_text("utf8"))
    assert [part["status"] for part in record["parts"]] == 13 * ["measured"]
    for part in record["parts"]:
        preset = part["optimizer"] in ("hessian_free", STOCHASTIC)
        assert (part["preconditioner_share"] is not None) == preset
        assert part["seconds"] > 0 and part["complete"]
        assert part["losses"][-1] < part["losses"][0]
    assert "Loss after 6 steps" in report.gpu(record)
