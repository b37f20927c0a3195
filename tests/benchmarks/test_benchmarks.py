"""The benchmark program: its commands, its cost model, its tables."""

import dataclasses
import functools
import json
import math
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from typer.testing import CliRunner

import ncg_optax as ncg
from benchmarks.commands import app
from benchmarks.commands.run import QUICK_BUDGET
from benchmarks.peers import COMPETITORS, Problem, Setting, first_order
from benchmarks.peers.batches import in_batches, plan
from benchmarks.reports import curves as plots
from benchmarks.reports import records
from benchmarks.reports import tables as report
from benchmarks.scenarios import SCENARIOS, Scenario
from benchmarks.scenarios._base import PosterSettings
from benchmarks.scenarios._networks import (
    dense,
    half_mean_squared_error,
    initialiser,
    r_squared,
)
from benchmarks.training import cost
from benchmarks.training.run import compile_method, train
from benchmarks.training.schedules import SCHEDULES
from benchmarks.training.tuning import Grid, first_rates, rows, search
from benchmarks.training.validation import Score, halves, validated

RUNNER = CliRunner()
WIDE = {"COLUMNS": "300", "TERM": "dumb", "NO_COLOR": "1"}


def invoke(*args):
    return RUNNER.invoke(app, [str(arg) for arg in args], env=WIDE)


def problem(sizes=(6, 16, 4), examples=128, budget=12.0):
    x = jax.random.normal(jax.random.key(1), (examples, sizes[0]))
    y = jnp.sin(x[:, : sizes[-1]])
    scenario = Scenario(
        name="toy",
        description="a network whose costs are known",
        load=lambda: None,
        init=initialiser(*sizes),
        model=dense,
        loss=half_mean_squared_error,
        metric=r_squared,
        metric_name="R²",
    )
    data = {"x": x, "y": y}
    return Problem(scenario, data, data, budget)


@pytest.fixture(scope="module")
def toy():
    return problem()


@pytest.fixture(scope="module")
def epochs(toy):
    """Adam in batches of 50: two an epoch, 28 of the 128 examples are left out."""
    setting = Setting(50, "cosine", -4)
    return compile_method(COMPETITORS["adam"].build(toy, setting), toy)


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """Results of one quick run, shared by the tests that only read them."""
    folder = tmp_path_factory.mktemp("results")
    args = ["run", "boston", "--quick", "--optimizers", "adam", "--seeds", 1]
    return folder, invoke(*args, "--output", folder)


# The commands


def test_list_names_every_scenario_and_optimizer():
    result = invoke("list")
    assert result.exit_code == 0
    assert all(name in result.stdout for name in [*SCENARIOS, *COMPETITORS])


@pytest.mark.parametrize("command", [[], ["run"], ["plot"], ["table"], ["list"]])
def test_help_is_there(command):
    result = invoke(*command, "--help")
    assert result.exit_code == 0
    assert "Usage" in result.stdout


def test_run_writes_results_and_a_picture(stored):
    folder, result = stored
    assert result.exit_code == 0, result.output
    assert "★" in result.stdout
    record = json.loads((folder / "boston" / "adam.json").read_text("utf8"))
    curve = record["runs"][0]["curve"]
    assert len({len(column) for column in curve.values()}) == 1
    assert curve["units"][-1] == record["budget"] == QUICK_BUDGET
    assert curve["loss"][-1] < curve["loss"][0]
    assert sum(cell["winner"] for cell in record["grid"]) == 1
    assert record["command"].endswith("--optimizers adam --seeds 1 --quick")
    picture = (folder / "boston" / "curves.png").read_bytes()
    assert picture.startswith(b"\x89PNG")


def test_run_says_what_is_missing_or_does_not_fit(tmp_path, monkeypatch):
    def missing():
        raise FileNotFoundError("download it")

    nothing = SCENARIOS["boston"]._replace(load=missing)
    monkeypatch.setitem(SCENARIOS, "boston", nothing)
    result = invoke("run", "boston", "--output", tmp_path)
    assert result.exit_code == 2
    assert "download it" in result.output
    result = invoke("run", "wisconsin", "--optimizers", "kfac", "--output", tmp_path)
    assert result.exit_code == 0
    assert "wisconsin is not for kfac: left out." in result.output


def test_results_tell_no_path_and_no_hostname(stored):
    folder, _ = stored
    text = (folder / "boston" / "adam.json").read_text("utf8")
    assert str(folder) not in text
    assert set(json.loads(text)["machine"]) == {
        "cpu", "cores", "platform", "python", "device",
    }  # fmt: skip


def test_plot_redraws_from_a_directory_and_from_files(stored):
    folder, _ = stored
    picture = folder / "boston" / "curves.png"
    for target in (["boston", "--output", folder], [folder / "boston" / "adam.json"]):
        picture.unlink()
        assert invoke("plot", *target).exit_code == 0
        assert picture.exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["run", "bostn"], "no scenario 'bostn'; did you mean 'boston'?"),
        (
            ["run", "boston", "--optimizers", "adm"],
            "did you mean 'adam'?",
        ),
        (["run", "boston", "--budget", "0"], "a budget is a positive number, not 0"),
        (["run", "boston", "--budget", "-3"], "a budget is a positive number, not -3"),
        (["run", "boston", "--budget", "nan"], "a budget is a positive number"),
        (["run", "boston", "--seeds", "0"], "greater than or equal to 1"),
        (["plot", "bostn"], "no scenario 'bostn'"),
        (["plot", "boston", "--output", "/nowhere"], "no results of boston"),
        (["plot", "nothing.json"], "is not a result of"),
        (["table", "/nowhere"], "no results in"),
    ],
)
def test_bad_input_is_a_sentence_and_exit_code_2(args, message):
    result = invoke(*args)
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())


def test_every_optimizer_has_a_colour():
    assert set(plots.STYLES) == set(COMPETITORS)
    labelled = {
        name
        for name, competitor in COMPETITORS.items()
        if competitor.exponents or competitor.minibatch
    }
    assert set(plots.LABELS) == labelled


# Tables


def test_table_goes_between_the_marks_of_a_readme(stored, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    for _ in range(2):  # writing twice changes nothing
        assert invoke("table", stored[0], "--readme", readme).exit_code == 0
        text = readme.read_text("utf8")
        assert text.startswith(f"before\n{report.BEGIN}\n| Training loss")
        assert text.endswith(f"{report.END}\nafter\n")
        assert "old" not in text and text.count("| boston | 100 |") == 1


def test_table_needs_the_marks(stored, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("nothing here\n")
    result = invoke("table", stored[0], "--readme", readme)
    assert result.exit_code == 2
    assert "benchmark-table:begin" in result.output
    assert readme.read_text() == "nothing here\n"


def test_markdown_marks_the_lowest_median_and_survives_divergence():
    def record(optimizer, losses):
        return {
            "scenario": "digits",
            "optimizer": optimizer,
            "budget": 500.0,
            "versions": records.versions(),
            "runs": [{"loss": loss} for loss in losses],
        }

    text = report.markdown(
        [record("adam", [0.5, 0.25, 0.125]), record("sgd", [0.5, None, None])]
    )
    assert "| digits | 500 | **0.250** (0.125 – 0.500) |" in text
    assert "diverged (0.500 – diverged)" in text


# The cost model


def test_prices_of_a_dense_network_are_those_of_the_design():
    # The 784-512-512-10 network of design.md, section 6: 1.50 and 1.17 gradients.
    large = problem((784, 512, 512, 10), examples=32)
    hessian = cost.measure(large.scenario, large.train, "hessian")
    gauss_newton = cost.measure(large.scenario, large.train, "gauss_newton")
    assert hessian.product == pytest.approx(1.50, abs=0.03)
    assert gauss_newton.product == pytest.approx(1.17, abs=0.03)
    assert hessian.setup < 0.02 and gauss_newton.setup < 0.02
    # Forward : backward is 1 : 2, but the first layer needs no gradient of its input.
    assert hessian.evaluation == pytest.approx(0.43, abs=0.03)


def test_flops_counts_a_matrix_product():
    a = jnp.ones((20, 30))
    assert cost.flops(jnp.matmul, a, a.T) == pytest.approx(2 * 20 * 30 * 20, rel=0.05)


def test_products_are_those_of_the_curvature(toy):
    params = toy.scenario.init(0)
    vector = toy.scenario.init(1)
    gradient = jax.grad(lambda p: toy.scenario.value(p, **toy.train))

    @jax.jit
    def products(params, vector):
        hessian = cost._hessian(toy.scenario, params, toy.train)
        gauss_newton = cost._gauss_newton(toy.scenario, params, toy.train)
        _, expected = jax.jvp(gradient, (params,), (vector,))
        _, tangent = jax.jvp(
            lambda p: toy.scenario.model(p, toy.train["x"]), (params,), (vector,)
        )
        return (
            cost._apply(hessian, vector),
            expected,
            cost._apply(gauss_newton, vector),
            jnp.mean(tangent**2),
        )

    hessian, expected, product, square = products(params, vector)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        hessian,
        expected,
    )
    # The Gauss-Newton matrix of half a mean square is J'J / count.
    quadratic = sum(
        float(jnp.vdot(a, b))
        for a, b in zip(jax.tree.leaves(vector), jax.tree.leaves(product), strict=True)
    )
    assert quadratic == pytest.approx(float(square), rel=1e-4)


# Training and tuning


def test_a_mini_batch_step_costs_its_share(toy, epochs):
    run = train(epochs, toy, 0, 0.01)
    assert run.curve.steps[-1] == 30
    assert run.curve.units[-1] == pytest.approx(30 * 50 / 128)
    assert run.loss < run.curve.loss[0]


def test_runs_repeat_and_points_do_not_change_them(toy, epochs):
    runs = [train(epochs, toy, 0, 0.01, points=points) for points in (128, 128, 3)]
    assert runs[0].loss == runs[1].loss == runs[2].loss
    assert len(runs[2].curve.loss) <= 4 < len(runs[0].curve.loss)


def test_a_part_of_an_epoch_counts_as_such_and_misses_nothing():
    few = problem(examples=100, budget=4.0)
    seen = []

    def step(params, state, batch):
        jax.debug.callback(lambda x: seen.extend(x.tolist()), batch["x"][:, 0])
        return params, state, 1.0

    batches = plan(few, 5)
    assert batches == (5, 8, 2, 80)
    method = in_batches(few, batches, lambda params, rate: None, step)
    state, advance = method.init(None, 0, 0.0), jax.jit(method.advance)
    for _ in range(8):
        _, state = advance(None, state, few.train)
        assert method.spent(state) == pytest.approx(0.1)
    jax.effects_barrier()
    assert len(set(seen)) == len(seen) == 80
    key = state.key
    for _ in range(7):
        _, state = advance(None, state, few.train)
        assert state.key == key
    _, state = advance(None, state, few.train)
    assert state.key != key


@pytest.mark.parametrize("name", ["muon_minibatch", "soap_minibatch"])
def test_others_learn_in_mini_batches(toy, name):
    competitor = COMPETITORS[name]
    assert competitor.minibatch
    setting = Setting(32, "cosine", 0)
    run = train(compile_method(competitor.build(toy, setting), toy), toy, 0, 0.01)
    assert run.loss < run.curve.loss[0]
    assert run.curve.units[-1] == pytest.approx(toy.budget)


def test_the_reported_loss_can_be_that_of_some_examples(toy, epochs):
    scenario = toy.scenario._replace(curve_examples=3)
    rows = jax.tree.map(lambda leaf: leaf[jnp.array([0, 63, 127])], toy.train)
    curve = train(epochs, toy._replace(scenario=scenario), 0, 0.01).curve
    expected = scenario.value(scenario.init(0), **rows)
    assert curve.loss[0] == pytest.approx(float(expected), rel=1e-5)


def test_kfac_says_how_to_install_it(toy, monkeypatch):
    monkeypatch.setitem(sys.modules, "kfac_jax", None)
    with pytest.raises(ModuleNotFoundError, match='pip install "kfac-jax==0.0.8"'):
        COMPETITORS["kfac"].build(toy, None)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_kfac_learns_and_counts_its_steps(toy):
    pytest.importorskip("kfac_jax", exc_type=ImportError)
    scenario = toy.scenario._replace(registration=("squared_error", 0.5 / 4))
    known = toy._replace(scenario=scenario, budget=60.0)
    compiled = compile_method(COMPETITORS["kfac"].build(known, None), known)
    curve = train(compiled, known, 0).curve
    assert curve.loss[-1] < 0.5 * curve.loss[0]
    assert curve.units[1] > 2  # a gradient, and the curvature at least as much


def test_divergence_ends_a_run(toy):
    setting = Setting(None, "constant", 0)
    compiled = compile_method(COMPETITORS["sgd"].build(toy, setting), toy)
    run = train(compiled, toy, 0, 1e30)
    assert math.isinf(run.loss)
    assert run.curve.steps[-1] < 12


def test_lbfgs_pays_for_its_line_search(toy):
    compiled = compile_method(COMPETITORS["lbfgs"].build(toy, None), toy)
    curve = train(compiled, toy, 0).curve
    assert curve.units[1] >= 2  # the first value and gradient, and at least one trial
    assert curve.steps[-1] < curve.units[-1] <= 12
    assert curve.loss[-1] < curve.loss[0]


@pytest.mark.parametrize(
    ("name", "probes", "share"), [("newton_cg", 0, 1), ("hessian_free", 16, 1 / 4)]
)
def test_newton_pays_for_products_and_evaluations(name, probes, share):
    # Of 2048 examples the solver of hessian_free sees 512, its preconditioner 256. In
    # the first step one product looks whether the 512 are enough.
    known = problem(examples=2048)
    compiled = compile_method(COMPETITORS[name].build(known, None), known)
    params = known.scenario.init(0)
    state = compiled.init(params, jnp.int32(0), jnp.float32(0))
    _, state = compiled.advance(params, state, known.train)
    info = ncg.get_info(state)
    assert info.products > probes
    prices = compiled.method.prices
    samples = share + 1 / 8 if share < 1 else 0  # each is linearised
    looks = 1 if share < 1 else 0
    solved = int(info.products) - probes - looks
    parts = (
        1 + prices.setup,
        (solved * share + probes / 8 + looks) * prices.product,
        (int(info.evaluations) + samples) * prices.evaluation,
    )
    assert compiled.method.spent(state) == pytest.approx(sum(parts))
    longer = known._replace(budget=1.5 * sum(parts))
    curve = train(compiled, longer, 0).curve
    assert curve.units[1] == pytest.approx(sum(parts))
    assert curve.units[-1] <= longer.budget
    assert curve.loss[-1] < curve.loss[0]


def test_a_step_of_newton_is_priced_as_xla_counts_it(monkeypatch):
    # The default one rotates and decomposes as well, which no price is meant to cover.
    @dataclasses.dataclass(frozen=True)
    class OneProbe(ncg.preconditioners.Preconditioner):
        fraction = 1 / 8

        def init(self, params):
            return params

        def update(self, state, product, grads, *_):
            return product(grads), 1

        def apply(self, state, r, damping):
            return r

    preset = functools.partial(ncg.hessian_free, preconditioner=OneProbe())
    monkeypatch.setattr(ncg, "hessian_free", preset)
    wide = problem((128, 256, 256, 10), examples=2048)
    method = COMPETITORS["hessian_free"].build(wide, None)
    params = wide.scenario.init(0)
    state = jax.eval_shape(method.init, params, 0, 0.0)
    counted = cost.flops(method.advance, params, state, wide.train)
    # XLA counts a loop once, and of two branches the dearer: a trial, and an iteration
    # on all examples, besides the product on the sample that calibrates the damping and
    # the look. Linearising the whole batch is shared with the gradient.
    expected = method.prices.price(1 + 1 / 4 + 1 + 1 / 8, 1 + 1 / 4 + 1 / 8)
    counted /= method.prices.gradient_flops
    assert counted == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize("winner", [-12, -6, -2, 3])
def test_search_ends_inside_the_grid(winner):
    tried = dict(search(lambda e: abs(e - winner), [-7, -6, -5, -4], 8))
    assert min(tried) < winner < max(tried)


def test_search_goes_down_when_everything_diverges_and_gives_up():
    tried = [e for e, _ in search(lambda e: math.inf, [0, 1], extensions=3)]
    assert tried == [0, 1, -1, -2, -3]


@pytest.fixture(scope="module")
def noisy(toy):
    """The toy network with noise on its outputs, another draw at every step."""

    def model(params, x, key):
        outputs = dense(params, x)
        return outputs + 0.1 * jax.random.normal(key, outputs.shape)

    def predict(params, x, context):
        return dense(params, x) + context["y"].mean()

    scenario = toy.scenario._replace(model=model, predict=predict, random=True)
    return toy._replace(scenario=scenario, budget=8.0)


@pytest.mark.parametrize("name", ["hessian_free", "adam"])
def test_a_random_model_sees_another_key_at_every_step(noisy, name):
    method = COMPETITORS[name].build(noisy, Setting(None, "constant", -6))
    params = noisy.scenario.init(0)
    advance = jax.jit(method.advance)
    starts = method.init(params, 0, 1e-3)
    once, state = advance(params, starts, noisy.train)
    again, _ = advance(params, starts, noisy.train)
    other, _ = advance(params, starts._replace(key=state.key), noisy.train)
    jax.tree.map(np.testing.assert_array_equal, once, again)
    assert (once[0]["w"] != other[0]["w"]).any()


def test_every_mini_batch_has_a_key_of_its_own(noisy):
    def step(params, draws, batch):
        draw = jax.random.uniform(batch["key"])
        return params, jnp.roll(draws, 1).at[0].set(draw), 1.0

    method = in_batches(
        noisy, plan(noisy, 16), lambda params, rate: jnp.zeros(100), step
    )
    params = noisy.scenario.init(0)
    state, steps = method.init(params, 0, 0.0), 0
    while steps < 3 * 8:  # three epochs
        _, state = method.advance(params, state, noisy.train)
        steps += method.steps
    assert len(set(np.array(state.inner[:steps]).tolist())) == steps


def test_the_curve_of_a_random_model_always_uses_the_same_key(noisy):
    competitor = COMPETITORS["adam"]
    compiled = compile_method(
        competitor.build(noisy, Setting(None, "constant", -6)), noisy
    )
    run = train(compiled, noisy, seed=0, learning_rate=0.0)
    assert len(set(run.curve.loss)) == 1
    # `predict` has the training targets in its context.
    outputs = dense(noisy.scenario.init(0), noisy.train["x"]) + noisy.train["y"].mean()
    expected = half_mean_squared_error(outputs, noisy.held_out["y"])
    assert run.held_out_loss == pytest.approx(float(expected), rel=1e-5)


def test_competitors_that_need_the_same_loss_leave_random_models_out(noisy):
    fitting = {name for name, c in COMPETITORS.items() if c.fits(noisy.scenario)}
    assert not fitting & {"lbfgs", "kfac", "residual_space"}
    assert {"hessian_free", "adam", "adam_minibatch"} <= fitting


def test_sgd_hands_over_to_hessian_free_in_the_middle(toy):
    """Steps of SGD cost one gradient; the first of the others starts where it ended."""
    known = toy._replace(budget=8.0)
    competitor = COMPETITORS["sgd_then_hessian_free"]
    assert rows(competitor, known, Grid.FULL) == [
        (competitor.batch, "constant"),
        (competitor.batch, "cosine"),
    ]
    method = competitor.build(known, Setting(competitor.batch, "constant", 0))
    params = known.scenario.init(0)
    state = method.init(params, 0, 0.1)
    advance = jax.jit(method.advance)
    means, costs = [], []
    while sum(costs) <= known.budget:
        params, state = advance(params, state, known.train)
        means.append(params)
        costs.append(method.spent(state))
        # The mean of SGD's iterates is the last one; it begins with the other method.
        averaged = state.inner
        if averaged.count <= 16:
            np.testing.assert_array_equal(params[0]["w"], averaged.iterate[0]["w"])
    size = 128 // 4
    sgd = 16  # of the 32 batches that a budget of 8 epochs has
    assert costs[:sgd] == pytest.approx([size / 128] * sgd)
    assert min(costs[sgd:]) > 3 * size / 128
    assert (params[0]["w"] != averaged.iterate[0]["w"]).any()


def test_a_bracket_has_the_smallest_batches_and_few_rates(toy):
    scenario = toy.scenario._replace(batch_sizes=(32, 16))
    known = toy._replace(scenario=scenario)
    adam, averaged = COMPETITORS["adam_minibatch"], COMPETITORS["adam_averaged"]
    assert rows(adam, known, Grid.BRACKET) == [(16, "constant"), (16, "cosine")]
    assert rows(adam, known, Grid.COARSE) == [(32, "constant")]
    assert len(rows(adam, known, Grid.FULL)) == 4
    assert rows(averaged, known, Grid.BRACKET) == [(16, "constant")]
    assert first_rates(adam, Grid.BRACKET) == [-6, -5, -4]
    assert first_rates(adam, Grid.COARSE) == [-7, -5, -3]
    assert first_rates(adam, Grid.FULL) == list(adam.exponents)


def test_the_average_of_the_iterates_is_that_of_kronecker_adam(toy):
    """Whatever the optimizer: here SGD, whose iterates are known."""
    known = toy._replace(budget=4.0)
    setting = Setting(32, "constant", -2)
    plain = first_order.first_order(optax.sgd, known, setting)
    averaged = first_order.first_order(optax.sgd, known, setting, averaged=True)
    params = mean = found = known.scenario.init(0)
    state, other = (m.init(params, 0, 0.1) for m in (plain, averaged))
    assert plain.steps == averaged.steps == 1
    for t in range(1, 9):
        params, state = plain.advance(params, state, known.train)
        found, other = averaged.advance(found, other, known.train)
        expected = jax.tree.map(
            lambda a, x, t=t: a + 9 / (t + 8) * (x - a), mean, params
        )
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
            found,
            expected,
        )
        mean = expected
    assert not np.allclose(mean[0]["w"], params[0]["w"], rtol=1e-3)


def test_each_half_is_scored_where_the_other_one_is_best():
    def curve(losses):
        return [Score(float(i), loss, -loss) for i, loss in enumerate(losses)]

    first, second = curve([5.0, 3.0, 4.0]), curve([6.0, math.nan, 2.0])
    found = validated(list(zip(first, second, strict=True)))
    # The first half is best after 1, the second after 2 gradients.
    assert math.isnan(found.loss)
    assert found.units == 1.5
    second = curve([6.0, 4.0, 2.0])
    found = validated(list(zip(first, second, strict=True)))
    assert found == (1.5, (4.0 + 4.0) / 2, -4.0)
    assert validated([[], []]) is None


def test_halves_have_no_example_in_common(toy):
    held_out = {"x": jnp.arange(7.0)[:, None], "y": jnp.arange(7.0)}
    first, second = halves(toy._replace(held_out=held_out))
    assert [*first["y"], *second["y"]] == [0, 2, 4, 1, 3, 5]
    assert first["x"].shape == second["x"].shape == (3, 1)
    undivided = toy.scenario._replace(batch_sizes=())
    assert halves(toy._replace(scenario=undivided, held_out=held_out)) == []


def test_a_run_is_scored_where_it_is_best_on_held_out_examples(toy, epochs):
    """At the end of a run that only improves, about as at its end."""
    run = train(epochs, toy, seed=0, learning_rate=0.03)
    assert 0 <= run.validated.units <= toy.budget
    assert run.validated.loss <= run.held_out_loss * 1.1
    stored = records.as_record(run)["validated"]
    assert stored == run.validated._asdict()


def test_noam_rises_to_one_and_falls_like_an_inverse_root():
    shape = SCHEDULES["noam"](1000)
    assert shape(0) == pytest.approx(0.01)
    assert shape(99) == pytest.approx(1.0)
    assert shape(399) == pytest.approx(0.5, rel=1e-2)


def test_the_poster_falls_back_to_the_gradient_where_its_damping_is_large(toy):
    """With tau far above the gradient every step is plain gradient descent."""
    settings = PosterSettings(learning_rate=0.5, damping=1e5)
    known = toy._replace(scenario=toy.scenario._replace(poster=settings))
    method = COMPETITORS["poster"].build(known, None)
    params = known.scenario.init(0)
    state = method.init(params, 0, 0.0)
    found, _ = jax.jit(method.advance)(params, state, known.train)
    slope = jax.grad(lambda p: known.scenario.value(p, **known.train))(params)
    expected = jax.tree.map(lambda p, g: p - 0.5 * g, params, slope)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
        found,
        expected,
    )


def test_the_version_is_that_of_the_code_that_runs(monkeypatch):
    """Whatever number an editable installation was given when it was made."""
    monkeypatch.setattr(records.metadata, "version", lambda name: "0.0.1")
    versions = records.versions()
    assert versions["ncg_optax"] == ncg.__version__
    assert versions["jax"] == "0.0.1"
