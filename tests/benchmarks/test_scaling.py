"""Scaling: the cost model by hand, what is sorted and shown, and a run on two devices.

Nothing here is a timing.
"""

import itertools
import json
import math

import jax
import jax.numpy as jnp
import pytest
from typer.testing import CliRunner

import ncg_optax as ncg
from benchmarks.commands import app
from benchmarks.measurements import memory
from benchmarks.reports import scaling as scaling_report
from benchmarks.scaling import cost_model, kronecker_work
from benchmarks.scaling import measure as scaling
from benchmarks.scaling import models as scaling_models
from benchmarks.scaling import prediction as scaling_prediction
from benchmarks.scaling.communication import Collective, collectives
from benchmarks.scaling.cost_model import (
    Algorithm,
    Matrices,
    Network,
    Pass,
    Processor,
    Recipe,
)
from benchmarks.scaling.measure import Spec

RING = Algorithm("ring", "ring", 1.0, 0.5, 2.0, 10.0, 5.0)
TREE = Algorithm("tree", "tree", 1.0, 0.5, 2.0, 10.0, 5.0)
FREE = Algorithm("free", "ring", 0.0, 0.0, 0.0, math.inf, math.inf)
# 10 examples a second, half of it where it must be precise; a second a gradient beside.
PROCESSOR = Processor(10.0, 5.0, 1.0, 1e3, 100.0, 0.1, 0.01)
IDEAL = Processor(10.0, 5.0, 0.0, math.inf, math.inf, 0.0, 0.0)


def matrices(devices):
    return Matrices(
        flops=50 / devices,
        columns=20,
        launches=5,
        numbers=25,
        gathered=((2, 30),),
        reduced=((0.5, 60),),
    )


RECIPE = Recipe(
    "by hand",
    (Pass(1, 1), Pass(2, 1.5, fraction=1 / 4, precise=True)),
    products=3,
    numbers=1,
    sweeps=5,
    matrices=matrices,
)
WEIGHTS = 10


def step(devices, batch=80, recipe=RECIPE, processor=PROCESSOR, algorithms=(RING,)):
    network = Network(4, algorithms)
    return cost_model.step(recipe, WEIGHTS, batch, devices, processor, network)


def test_one_device_computes_and_sends_nothing():
    taken = step(devices=1)
    # A gradient on 80 at 10/s; two products of 1.5 on 20 at 5/s.
    assert taken.compute == pytest.approx(80 / 10 + 2 * 1.5 * 20 / 5)
    assert taken.overhead == pytest.approx(1 + 2 * 1.5)
    assert taken.communication == taken.latency == taken.bandwidth == 0
    assert taken.vectors == pytest.approx(4 * WEIGHTS * 5 / 1e3)
    # Operations, columns, launches, and numbers of four bytes.
    assert taken.preconditioner == pytest.approx(0.5 + 2 + 0.05 + 0.1)
    assert taken.seconds == pytest.approx(20 + 4 + 0.2 + 2.65)
    assert taken.limit == "overhead"


def test_four_devices_by_hand():
    one, four = step(devices=1), step(devices=4)
    assert four.compute == pytest.approx(one.compute / 4)
    assert four.overhead == one.overhead
    assert four.vectors == one.vectors
    assert one.preconditioner - four.preconditioner == pytest.approx(0.5 * 3 / 4)
    # Gradient and loss, three products, a number, and half of a stack; each in
    # 2 (4 - 1) hops of 0.5. Two all-gathers with half of the hops and bytes.
    assert four.latency == pytest.approx(5.5 * (1 + 6 * 0.5) + 2 * (1 + 3 * 0.5))
    reduced = 4 * (WEIGHTS + 1) + 3 * 4 * WEIGHTS + 4 + 0.5 * 4 * 60
    assert four.bandwidth == pytest.approx(3 / 4 * (2 * reduced + 2 * 4 * 30) / 10)


def test_half_the_bytes_of_products():
    whole, half = step(4), step(4, recipe=RECIPE._replace(product_bytes=2))
    saved = whole.bandwidth - half.bandwidth
    assert saved == pytest.approx(1.5 * 3 * 2 * WEIGHTS / 10)


KRONECKER = ncg.kronecker(probes=3, iterations=2, refresh=2, max_size=512)
SIDES = [(256, 64), (1000, 256), (256, 1)]


def test_matrices_of_one_device_by_hand():
    found = kronecker_work.matrices(SIDES, KRONECKER, 5, 0, devices=1)
    # The sides of 256, 64, 256 and 256 have matrices; that of 1000 has a diagonal.
    products = 2 * 256 * 64 * (256 + 64) + 2 * 1000 * 256 * 256 + 2 * 256 * 256
    inverses = 2 * (3 * 256**3 + 64**3)
    # In two steps each of the four is due once, with two iterations.
    iterations = (2 * (2 + 8 / 3) + 2) / 2 * (3 * 256**3 + 64**3)
    expected = (3 + 5) * products + inverses + iterations
    assert found.flops == pytest.approx(expected)
    assert found.columns == pytest.approx(2 * (3 * 256 + 64) / 2)
    assert found.launches == (3 + 5) * 4 + 2 * 2


def test_devices_share_matrices():
    one, four = (
        kronecker_work.matrices(SIDES, KRONECKER, 5, 0, devices=n) for n in (1, 4)
    )
    # Of the three sides of 256 one or two are due, each on a device of its own; the
    # one of 64 is due in every second step.
    assert four.columns == pytest.approx(2 * (256 + 64 / 2))
    full = 3 * 256**2
    assert four.gathered == ((2, full), (5, 256 * 64 + 1000 * 256 + 256))
    stacks = {3 * (2 * 256**2 + 256): 1.0, 2 * 64**2 + 64: 0.5}
    assert {numbers: count for count, numbers in four.reduced} == stacks
    assert one.flops / 4 < four.flops < one.flops / 2
    # Rows of sides below 128 are not shared.
    small = [(100, 100)]
    alone, shared = (
        kronecker_work.matrices(small, KRONECKER, 5, 0, devices=n) for n in (1, 4)
    )
    assert shared.flops == alone.flops
    assert shared.gathered == ((2, 0), (5, 0))


@pytest.mark.parametrize("devices", [1, 2, 8])
def test_shares_of_iterations_are_those_of_the_library(devices):
    """Counted over a period, with the dealing of `sharing.in_turn`."""
    members, period = 13, 4
    turns = [math.floor(t * members / period) for t in range(period + 1)]
    due = [last - first for first, last in itertools.pairwise(turns)]
    rounds = sum(-(-number // devices) for number in due)
    found = kronecker_work.matrices(
        members * [(300, 1)], ncg.kronecker(iterations=1, refresh=period), 1, 0, devices
    )
    assert found.columns == pytest.approx(300 * rounds / period)


def test_rings_and_trees_over_nodes():
    network = Network(4, (RING,))
    ring = cost_model.all_reduce(100, 16, network)
    # 30 hops, of which 2 (4 - 1) are between the four nodes.
    assert ring.latency == pytest.approx(1 + 24 * 0.5 + 6 * 2)
    assert ring.bandwidth == pytest.approx(2 * 15 / 16 * 100 / 5)
    tree = cost_model.all_reduce(100, 16, Network(4, (TREE,)))
    assert tree.latency == pytest.approx(1 + 2 * (3 * 0.5 + 2 * 2))
    assert tree.bandwidth == pytest.approx(2 * 100 / 5)
    slow = RING._replace(network_latency=2.0)
    assert cost_model.all_reduce(100, 16, Network(4, (slow,))).latency == 50
    assert cost_model.all_reduce(100, 4, Network(4, (slow,))).latency == 4
    both = Network(4, (RING, TREE))
    assert cost_model.all_reduce(100, 16, both) == tree  # 12 + 40 against 25 + 37.5
    assert cost_model.all_reduce(1000, 16, both) != tree


def test_efficiency_without_losses_is_one():
    for devices in (1, 2, 8):
        machine = {"processor": IDEAL, "network": Network(4, (FREE,))}
        recipe = RECIPE._replace(sweeps=0, matrices=lambda n: Matrices(50 / n))
        found = cost_model.strong_efficiency(recipe, WEIGHTS, 80, devices, **machine)
        assert found == pytest.approx(1)
        found = cost_model.weak_efficiency(recipe, WEIGHTS, 10, devices, **machine)
        assert found == pytest.approx(1)


@pytest.mark.parametrize("efficiency", ["strong_efficiency", "weak_efficiency"])
def test_efficiency_falls_with_latency_weights_and_devices(efficiency):
    def found(latency=0.5, weights=WEIGHTS, devices=4):
        algorithm = RING._replace(inside=latency)
        function = getattr(cost_model, efficiency)
        return function(
            RECIPE, weights, 80, devices,
            processor=PROCESSOR, network=Network(8, (algorithm,)),
        )  # fmt: skip

    assert found(devices=1) == 1
    assert 1 > found(devices=2) > found(devices=4) > found(devices=8) > 0
    assert found(latency=0.1) > found(latency=1) > found(latency=10)
    assert found(weights=1) > found(weights=100) > found(weights=1000)


def test_batches_that_cannot_be_shared_are_refused():
    with pytest.raises(ValueError, match="devices must divide the batch of 512"):
        step(devices=1024, batch=512)
    with pytest.raises(ValueError, match="devices must be a positive number"):
        cost_model.all_reduce(1, 0, Network(4, (RING,)))


@pytest.mark.parametrize("batch", [256, 512, 1024, 2000, 4096])
def test_samples_are_those_of_the_library(batch):
    """A quarter, but 512 examples: of `ncg_optax.sampling`, on one device."""
    found = cost_model.rows_on_a_device(Pass(1, 1, 1 / 4, 512), batch, 1)
    seen = []

    def model(w, x):
        seen.append(len(x))
        return x @ w

    loss = ncg.CompositeLoss(model, lambda z, y: jnp.mean((z - y) ** 2))
    tx = ncg.newton_cg(
        curvature=ncg.gauss_newton(),
        sampling=ncg.sampling(curvature_fraction=1 / 4),
    )
    w, data = jnp.zeros(2), {"x": jnp.ones((batch, 2)), "y": jnp.ones(batch)}
    jax.eval_shape(
        lambda: tx.update(w, tx.init(w), w, value_fn=loss.bind(**data)),
    )
    assert int(found) == min(seen)


def test_the_published_rates_have_the_assumed_form():
    overhead, rate = cost_model.fit_overhead(cost_model.FORWARD_TF32)
    for examples, published in cost_model.FORWARD_TF32.items():
        modelled = examples / (overhead + examples / rate)
        # The table has one outlier: at 32, slower than at 16.
        tolerance = 0.35 if examples == 32 else 0.16
        assert modelled == pytest.approx(published, rel=tolerance)


def test_the_model_against_published_measurements():
    latency = cost_model.all_reduce(4, 256, cost_model.DGX_A100).seconds
    assert latency == pytest.approx(63e-6, rel=0.1)
    one_gigabyte = cost_model.all_reduce(1e9, 8, cost_model.DGX_A100).seconds
    assert 2 * 7 / 8 * 1e9 / one_gigabyte == pytest.approx(232.5e9, rel=0.05)


def test_serial_share_of_the_poster():
    """238 to 37 seconds on 1 to 8 devices."""
    share = cost_model.serial_share(
        scaling_prediction.POSTER_DEVICES, scaling_prediction.POSTER_SECONDS
    )
    assert 1 / (8 * share + 1 - share) == pytest.approx(0.804, abs=0.01)


def test_prediction():
    record = scaling_prediction.predict()
    rows = {(r["recipe"], r["batch"], r["devices"]): r for r in record["strong"]}
    for row in rows.values():
        assert sum(row["parts"].values()) == pytest.approx(1)
        low, middle, high = (
            row["efficiency"][name] for name in ("published", "a quarter", "none")
        )
        assert 0 < low < middle < high < 1
    for recipe in scaling_prediction.recipes():
        at = {
            (batch, devices): row["efficiency"]["published"]
            for (name, batch, devices), row in rows.items()
            if name == recipe.name
        }
        assert at[512, 8] > at[512, 64]
        assert at[4096, 64] < at[32768, 64]
        assert at[32768, 1024] < at[131072, 1024]
    # What is stored, and shown by the documentation, is what the code says.
    stored = json.loads(
        (scaling_report.RESULTS / scaling_report.FILES["prediction"]).read_text("utf8")
    )
    for name in ("strong", "weak", "variants"):
        assert _close(stored[name], record[name])


def _close(stored, computed):
    if isinstance(computed, dict):
        return all(_close(stored[key], value) for key, value in computed.items())
    if isinstance(computed, list | tuple):
        pairs = zip(stored, computed, strict=True)
        return all(_close(*pair) for pair in pairs)
    if isinstance(computed, float):
        return stored == pytest.approx(computed, rel=1e-5)
    return stored == computed


@pytest.mark.slow
def test_recipe_of_hessian_free_is_what_a_step_does():
    """Products, and what they and the trial values cost in units of the batch."""
    recipe = scaling_prediction.hessian_free()
    model = scaling_models.MODELS["tiny"]
    tx = scaling_models.OPTIMIZERS["hessian_free"](model)
    loss, data = model.composite(), model.batch(4096)

    @jax.jit
    def step(params, state):
        bound = loss.bind(**data)
        value, grads = jax.value_and_grad(bound)(params)
        updates, state = tx.update(
            grads, state, params, value=value, grad=grads, value_fn=bound
        )
        return jax.tree.map(jnp.add, params, updates), state

    params = model.init(0)
    state = tx.init(params)
    for _ in range(3):
        params, state = step(params, state)
    info = ncg.get_info(state)
    saved = 4 - int(info.cg_iterations)  # the solver stops early where it may
    # This step does not look at the whole batch, and shares its linearisation with the
    # gradient, which the recipe's TF32 gradient cannot.
    assert int(info.products) == recipe.products - 1 / 4 - saved
    rows = [cost_model.rows_on_a_device(p, 4096, 1) / 4096 for p in recipe.passes]
    units = sum(p.count * p.cost * r for p, r in zip(recipe.passes, rows, strict=True))
    units -= saved * scaling_prediction.GAUSS_NEWTON / 4
    units -= scaling_prediction.GAUSS_NEWTON / 4 + 1 / 3
    assert units == pytest.approx(float(info.gradient_equivalents), rel=1e-3)


@pytest.mark.slow
def test_recipe_of_stochastic_hessian_free_is_what_a_step_does():
    recipe = scaling_prediction.stochastic_hessian_free()
    found = scaling.measure(Spec("tiny", recipe.name, 4096, 1, steps=2))
    assert found["products"] == recipe.products
    rows = [cost_model.rows_on_a_device(p, 4096, 1) / 4096 for p in recipe.passes]
    units = sum(p.count * p.cost * r for p, r in zip(recipe.passes, rows, strict=True))
    assert units == pytest.approx(found["gradient_equivalents"], rel=1e-3)


# What is sent


def vector(elements, dtype="f32", width=4):
    return Collective("all-reduce", (dtype,), elements, width * elements)


def test_bytes_of_a_step():
    hlo = """
      %a = f32[] all-reduce(%x), to_apply=%sum
      %b = (f32[3,4]{1,0}, f32[4]) all-reduce(%y, %z), to_apply=%sum
      %c = (f32[3,4]{1,0}, f32[4], f32[]) all-reduce-start(%u, %v, %w), to_apply=%sum
      %d = f32[2,50]{1,0} all-gather(%q), dimensions={0}
    """
    found = collectives(hlo)
    sent = scaling.bytes_of_a_step(found, 16, products=5, evaluations=2)
    assert sent == 68 + 5 * 64 + 2 * 4 + 400
    both = [vector(101), vector(100, "bf16", 2), vector(100, "bf16", 2)]
    assert scaling.bytes_of_a_step(both, 100, 3, 1) == 404 + 3 * 200
    assert scaling.bytes_of_a_step([], 100, 3, 1) == 0


# Measuring


def test_steady_seconds_are_medians_over_a_cycle():
    assert scaling.steady([5, 1, 5, 1, 90, 1, 5, 1], cycle=2) == 3
    assert scaling.steady([2.0, 4.0], cycle=5) == 3


def result(**changes):
    found = {
        "machine": {"cpu": "a processor", "cores": 2, "device": "cpu"},
        "backend": "cpu",
        "weights": 356,
        "seconds": 1.0,
        "all_seconds": [1.0],
        "products": 5.0,
        "gradient_equivalents": 8.0,
        "bytes": 1424.0,
        "loss": 2.0,
    }
    return found | changes


def invoke(*args):
    env = {"COLUMNS": "300", "TERM": "dumb", "NO_COLOR": "1"}
    return CliRunner().invoke(app, list(map(str, args)), env=env)


def test_the_command_writes_table_and_figure(tmp_path, monkeypatch):
    asked = []

    def run(spec):
        asked.append(spec)
        return result(seconds=0.5 + 0.5 * spec.batch / spec.devices / 64)

    monkeypatch.setattr(scaling, "run", run)
    args = ("--model", "tiny", "--optimizer", "adam", "--output", tmp_path)
    found = invoke("scaling", "--devices", "2,1", "--batch", 64, *args)
    assert found.exit_code == 0, found.output
    # The reference is measured once.
    assert [(s.devices, s.batch) for s in asked] == [(1, 64), (2, 64), (2, 128)]
    assert {(s.processes, s.core) for s in asked} == {(1, None)}
    record = json.loads((tmp_path / "scaling_devices.json").read_text("utf8"))
    assert record["labels"] == [scaling.FUNCTIONAL["fake devices"]]
    assert "functional check, not a timing" in found.output
    _, strong, _, weak = record["points"]
    assert strong["efficiency"] == pytest.approx(1 / 0.75 / 2, rel=1e-5)
    assert weak["efficiency"] == 1
    assert set(record) >= {"command", "versions", "machine"}
    assert "machine" not in strong
    assert (tmp_path / "scaling_devices.png").stat().st_size > 5000


def test_processes_have_a_core_each(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        scaling, "run", lambda spec: asked.append(spec) or result(seconds=1.0)
    )
    monkeypatch.setattr(scaling.os, "sched_getaffinity", lambda _: {3, 5})
    args = ("--model", "tiny", "--optimizer", "adam", "--output", tmp_path)
    found = invoke("scaling", "--processes", "1,2,4", "--no-weak", "--batch", 64, *args)
    assert found.exit_code == 0, found.output
    assert [(s.processes, s.devices, s.core) for s in asked] == [
        (n, n, 0) for n in (1, 2, 4)
    ]
    record = json.loads((tmp_path / "scaling_processes.json").read_text("utf8"))
    kinds = [point["kind"] for point in record["points"]]
    assert kinds == ["processes", "processes", "shared cores"]
    assert record["labels"] == [scaling.FUNCTIONAL["shared cores"]]


def test_mini_batches_have_a_size_of_their_own(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(scaling, "run", lambda spec: asked.append(spec) or result())
    names = "adam,stochastic_hessian_free"
    args = ("--model", "tiny", "--optimizer", names, "--minibatch", 32)
    args += ("--devices", "1,2", "--no-weak", "--output", tmp_path)
    assert invoke("scaling", *args).exit_code == 0
    assert [(s.optimizer, s.batch) for s in asked] == [
        *2 * [("adam", 64)],
        *2 * [("adam", 32)],
        *2 * [("stochastic_hessian_free", 32)],
    ]
    record = json.loads((tmp_path / "scaling_devices.json").read_text("utf8"))
    assert "--batch 64 --minibatch 32" in record["command"]


@pytest.mark.parametrize(
    "args, message",
    [
        (["--devices", "1,x"], "--devices: expected positive whole numbers"),
        (["--processes", "0"], "--processes: expected positive whole numbers"),
        (["--model", "vgg"], "no model 'vgg'"),
        (["--optimizer", "adam,sgd"], "no optimizer 'sgd'"),
        (["--no-strong", "--no-weak"], "nothing to do"),
        (["--devices", "3", "--batch", "64"], "batch must be a multiple of 3"),
    ],
)
def test_the_command_explains_what_is_wrong(args, message, tmp_path):
    found = invoke("scaling", *args, "--output", tmp_path)
    assert found.exit_code == 2
    assert message in " ".join(found.output.split())
    assert not list(tmp_path.iterdir())


def test_a_failing_worker_is_reported():
    with pytest.raises(RuntimeError, match="(?s)a worker failed.*sgd"):
        scaling.run(Spec("tiny", "sgd", 64, devices=1), timeout=60)


def test_more_devices_than_there_are():
    with pytest.raises(ValueError, match="devices: 99 are wanted, there are"):
        scaling.measure(Spec("tiny", "adam", 99, devices=99))


@pytest.mark.slow
def test_two_fake_devices_do_what_one_does(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    points = scaling.sweep(
        "tiny", [("adam", 64), ("newton_cg", 64)], [1, 2], ["strong"], steps=2
    )  # four processes
    adam, adam_2, newton, newton_2 = points
    assert scaling.labels(points) == [scaling.FUNCTIONAL["fake devices"]]
    for one, two in ((adam, adam_2), (newton, newton_2)):
        assert one["weights"] == two["weights"] == 356
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-2)
        assert one["bytes"] == 0
        assert min(*one["all_seconds"], *two["all_seconds"]) > 0
        assert two["speedup"] == pytest.approx(one["seconds"] / two["seconds"])
    assert adam_2["bytes"] == 4 * 357
    expected = 1428 + newton_2["products"] * 1424 + newton_2["evaluations"] * 4
    assert newton_2["bytes"] == pytest.approx(expected)


@pytest.mark.slow
def test_two_processes_over_loopback(monkeypatch):
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    spec = Spec("tiny", "adam", 64, devices=2, steps=2, warmup=1, processes=2, core=0)
    two = scaling.run(spec, timeout=120)
    one = scaling.run(spec._replace(devices=1, processes=1), timeout=120)
    assert two["bytes"] == 4 * 357
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-5)


# Memory, precision, tables


def test_plans_of_memory():
    tiny = scaling_models.MODELS["tiny"]
    weights = 4 * 356
    plans = {
        name: memory.plan(tiny, memory.CANDIDATES[name], 1024)
        for name in ("adam", "adam, in pieces")
    }
    for found in plans.values():
        assert found.parameters == weights
        assert found.state == 2 * weights + 4
        assert found.batch == 2 * 4 * 16 * 1024
        held = found.parameters + found.state + found.batch
        # Donated: the results need no room of their own, but for a few numbers.
        assert 0 <= found.peak - held - found.temporary < 1000
    assert plans["adam, in pieces"].temporary < plans["adam"].temporary
    with pytest.raises(ValueError, match="batch_size must be a multiple of 16"):
        memory.plan(tiny, memory.CANDIDATES["adam"], 100)


def test_parts_of_the_page(tmp_path):
    for name in scaling_report.PARTS:
        assert scaling_report.part(name, tmp_path) == "*Not measured yet.*"
        text = scaling_report.part(name)
        assert "|" in text or text.startswith(("- ", "*Not measured")), name
    with pytest.raises(ValueError, match="name must be one of devices, processes"):
        scaling_report.part("speed")
