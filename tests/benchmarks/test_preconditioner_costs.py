"""What preconditioners cost: the bookkeeping, never the seconds themselves."""

import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from typer.testing import CliRunner

import ncg_optax as ncg
from benchmarks.commands import app
from benchmarks.measurements import preconditioners
from benchmarks.measurements.preconditioners import CANDIDATES, Cost, Measured, Memory
from benchmarks.scenarios import SCENARIOS, Dataset, Scenario
from benchmarks.scenarios._networks import (
    dense,
    half_mean_squared_error,
    initialiser,
    r_squared,
)
from benchmarks.training import cost

SIZES = (6, 16, 4)
SIDES = ((6, 16), (16, 1), (16, 4), (4, 1))  # of the leaves, as matrices
SIZE = sum(m * n for m, n in SIDES)
EXAMPLES = 2048  # a quarter and an eighth of them are large enough samples
MEASURED = {
    "none": Measured(
        Cost(2e-3, 1.98e-3, 1e-5, 1e-5, 5.0, 0.0, 0.0, 3.0),
        Memory(9.0, 2.0, 20.0, 1.0, 0.0),
    ),
    "heavy": Measured(
        Cost(4e-3, 1e-3, 2e-3, 1e-3, 4.5, 1.0, 1.25, 5.0),
        Memory(19.0, 12.0, 30.0, 11.0, 8.0, 20.0),
    ),
}


@pytest.fixture(scope="module")
def toy():
    x = jax.random.normal(jax.random.key(1), (EXAMPLES, SIZES[0]))
    data = {"x": x, "y": jnp.sin(x[:, : SIZES[-1]])}
    return Scenario(
        name="toy",
        description="a network whose costs are known",
        load=lambda: Dataset(data, data),
        init=initialiser(*SIZES),
        model=dense,
        loss=half_mean_squared_error,
        metric=r_squared,
        metric_name="R²",
    )


@pytest.fixture(scope="module")
def measured(toy):
    names = []
    with pytest.MonkeyPatch.context() as patch:
        few = {name: CANDIDATES[name] for name in ("none", "kronecker")}
        patch.setattr(preconditioners, "CANDIDATES", few)
        found = preconditioners.measure(
            toy, toy.load().train, repeats=1, progress=names.append
        )
    assert names == list(few) == list(found)
    return found


@pytest.mark.slow
def test_products_are_counted_in_units_of_the_whole_batch(toy, measured):
    none, kronecker = measured["none"].cost, measured["kronecker"].cost
    assert none.products == none.product_units == 0
    assert kronecker.products == pytest.approx(2 / 8)  # two, each on an eighth
    prices = cost.measure(toy, toy.load().train, "gauss_newton")
    assert kronecker.product_units == pytest.approx(prices.product / 4)
    # The solver sees a quarter. One trial each. In every fourth step one product looks
    # whether the sample is enough: in none of a cycle of one, in two or three of
    # kronecker's cycle of ten.
    evaluations = 1 + 1 / 4
    for taken, samples, looks in ((none, 0, 0), (kronecker, 1 / 8, 1 / 4)):
        assert taken.iterations == 4
        products = taken.iterations / 4 + taken.products + looks
        expected = prices.price(products, evaluations + samples)
        assert taken.step_units == pytest.approx(expected, abs=0.2)


@pytest.mark.slow
def test_seconds_are_there(measured):
    for taken, _ in measured.values():
        assert min(taken[:4]) > 0
        own = taken.step_seconds - taken.bare_seconds
        assert taken.share == pytest.approx(own / taken.step_seconds)


@pytest.mark.slow
def test_memory_is_that_of_the_arrays(toy, measured):
    none, kronecker = measured["none"].memory, measured["kronecker"].memory
    scalars = 40 / SIZE  # counters and measurements, four bytes each
    # Five secant pairs, and where the last step began.
    pairs = 2 * 5 + 2
    assert none.state == pytest.approx(pairs, abs=scalars)
    assert none.factors == none.beyond_none == none.beside_factors == 0
    # Vectors of up to 16 elements have matrices, as all others here.
    factors = sum(2 * (m * m + n * n) for m, n in SIDES) / SIZE
    assert kronecker.factors == pytest.approx(factors)
    values = sum(m + n for m, n in SIDES) / SIZE
    assert kronecker.state == pytest.approx(pairs + factors + values, abs=scalars)
    data = EXAMPLES * (SIZES[0] + SIZES[-1]) / SIZE
    for memory in (none, kronecker):
        expected = memory.state + 1 + data
        assert memory.arguments == pytest.approx(expected, abs=scalars)
        assert memory.temporary > 0
    added = kronecker.state + kronecker.temporary - none.state - none.temporary
    assert kronecker.beyond_none == pytest.approx(added)
    assert kronecker.beside_factors == pytest.approx(added - factors)


def compiled(toy, inner):
    preconditioner = preconditioners.Counting(inner)
    solver = preconditioners.SOLVER
    tx = ncg.hessian_free(preconditioner=preconditioner, solver=solver)
    params, data = toy.init(0), toy.load().train
    state = tx.init(params)
    program = preconditioners._compile(toy, tx, preconditioner, params, state, data)
    return program, (params, state, data)


def test_the_parts_do_what_the_step_does(toy):
    jacobi = ncg.jacobi(refresh=2, probes=3)
    program, (params, state, data) = compiled(toy, jacobi)
    for _ in range(3):
        grads = jax.grad(lambda p, d: toy.value(p, **d))(params, data)
        own, prepared = program.update(params, state, grads, data)
        params, state = program.step(params, state, data)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6),
            own,
            state[0].preconditioner,
        )
    assert own.products == 3 / 4  # the third step is due, on a quarter of the data
    once = jacobi.apply(own.inner, grads, 0.5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5),
        program.apply(prepared, grads, 0.5, 2),
        jacobi.apply(own.inner, once, 0.5),
    )


def test_the_bare_step_does_all_but_the_preconditioning(toy):
    program, args = compiled(toy, ncg.identity())
    step, bare = program.step(*args), program.bare(*args)
    np.testing.assert_allclose(bare[1][0].info, step[1][0].info, rtol=1e-4)


def test_nothing_else_is_in_the_update(toy):
    program, (params, state, data) = compiled(toy, ncg.identity())
    arguments = params, state, params, data
    update = program.update.lower(*arguments).compile().cost_analysis()
    assert update.get("flops", 0) < 1e-3 * cost.counted(program.step)


@pytest.mark.parametrize("name", CANDIDATES)
def test_the_work_repeats_after_a_cycle(name):
    make, cycle = CANDIDATES[name]
    preconditioner = preconditioners.Counting(make())
    root = jax.random.normal(jax.random.key(0), (40, 40))
    grads, damping = jnp.ones(40), jnp.ones(())

    def update(state, count):
        key = jax.random.fold_in(jax.random.key(1), count)
        new, products = preconditioner.update(
            state, lambda v: root @ (root.T @ v), grads, damping, key, count
        )
        pairs = zip(*map(jax.tree.leaves, (state, new)), strict=True)
        # A side of length one has an eigenvalue that is a rounded 1.
        changed = [jnp.any(old != now) for old, now in pairs if old.size > 1]
        changed = jnp.array(changed)
        return new, (new.products, products, changed)

    state = preconditioner.init(grads)
    run = jax.jit(lambda: jax.lax.scan(update, state, jnp.arange(3 * cycle))[1])
    recorded, products, changed = run()
    np.testing.assert_array_equal(recorded, products)  # where nothing is sampled
    assert bool(jnp.any(products[cycle:] > 0)) == (name != "none")
    for work in (products, changed):
        np.testing.assert_array_equal(work[cycle : 2 * cycle], work[2 * cycle :])


def test_medians_of_calls_that_take_turns(monkeypatch):
    now, calls = [0.0], []
    durations = {"a": iter([9.0, 1.0, 5.0, 3.0]), "b": iter([9.0, 2.0, 2.0, 8.0])}

    def call(name):
        calls.append(name)
        now[0] += next(durations[name])

    clock = SimpleNamespace(perf_counter=lambda: now[0])
    monkeypatch.setattr(preconditioners, "time", clock)
    runs = tuple(lambda name=name: call(name) for name in "ab")
    # The first call of each compiles, and does not count.
    assert preconditioners._medians(runs, 3) == (3.0, 2.0)
    assert calls == ["a", "b"] * 4


def test_tables_show_what_misses_its_target():
    text = preconditioners.tables("toy", MEASURED)
    assert "| 0.01 |" in text and "| **0.75** |" in text
    assert "| **12** |" in text and "| 0 |" in text
    assert "Targets: share below 0.25, beside_factors below 3." in text


def invoke(*args):
    env = {"COLUMNS": "300", "TERM": "dumb", "NO_COLOR": "1"}
    return CliRunner().invoke(app, ["preconditioners", *map(str, args)], env=env)


def test_the_command_writes_and_prints(toy, tmp_path, monkeypatch):
    asked = []

    def measure(scenario, data, repeats, progress):
        progress("none")
        asked.append((scenario.name, len(data["x"]), repeats))
        return MEASURED

    monkeypatch.setattr(preconditioners, "measure", measure)
    known = {name: toy._replace(name=name) for name in ("boston", "life")}
    for name, scenario in known.items():
        monkeypatch.setitem(SCENARIOS, name, scenario)
    result = invoke("boston", "life", "--repeats", 2, "--output", tmp_path)
    assert result.exit_code == 0, result.output
    assert asked == [("boston", EXAMPLES, 2), ("life", EXAMPLES, 2)]
    assert "heavy" in result.stdout and "beside_factors" in result.stdout
    record = json.loads((tmp_path / "preconditioners.json").read_text("utf8"))
    assert record["command"].endswith(" preconditioners boston life --repeats 2")
    assert {"ncg_optax", "jax", "jaxlib"} <= set(record["versions"])
    assert set(record["machine"]) >= {"cpu", "cores", "device"}
    life = record["scenarios"]["life"]
    assert (life["parameters"], life["examples"]) == (SIZE, EXAMPLES)
    heavy = life["preconditioners"]["heavy"]
    assert heavy["cost"]["share"] == 0.75
    assert heavy["memory"]["beside_factors"] == 12


def test_the_command_explains_what_is_wrong(toy, tmp_path, monkeypatch):
    def missing():
        raise FileNotFoundError("download it")

    nothing = toy._replace(name="boston", load=missing)
    monkeypatch.setitem(SCENARIOS, "boston", nothing)
    for args, message in (
        (["bostn"], "no scenario 'bostn'"),
        (["boston"], "download it"),
        (["boston", "--repeats", 0], "greater than or equal to 1"),
    ):
        result = invoke(*args, "--output", tmp_path)
        assert result.exit_code == 2
        assert message in " ".join(result.output.split())
    assert not list(tmp_path.iterdir())
