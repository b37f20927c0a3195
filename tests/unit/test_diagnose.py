import collections
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from oracles import rosenbrock

import ncg_optax as ncg
from ncg_optax import Status

START = jnp.array([-1.2, 1.0])


def run(tx, loss, params, steps, gradient=None, **batches):
    """The stacked infos of a run, with other gradients than the loss's if given."""
    gradient = gradient or jax.grad(loss)

    def step(carry, data):
        params, state = carry
        updates, state = tx.update(
            gradient(params, **data), state, params, value_fn=loss, **data
        )
        return (optax.apply_updates(params, updates), state), ncg.get_info(state)

    @jax.jit
    def scan(params, batches):
        return jax.lax.scan(step, (params, tx.init(params)), batches, length=steps)[1]

    return jax.device_get(scan(params, batches))


def names(history, **settings):
    return [finding.name for finding in ncg.diagnose(history, **settings).findings]


def until(infos, end):
    return jax.tree.map(lambda x: x[:end], infos)


def one(infos, k):
    return jax.tree.map(lambda x: x[k], infos)


def bowl(w):
    return jnp.sum(jnp.cosh(w))


def valley(w):
    return jnp.sum(100 * (w[1:] - w[:-1] ** 2) ** 2 + (1 - w[:-1]) ** 2)


def regression(examples, noise=0.3, dtype=jnp.float32):
    """A tanh network that learns a sine: parameters, loss, inputs and targets."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(examples, 3))
    y = np.sin(1.5 * x @ rng.normal(size=(3, 1)))
    y += noise * rng.normal(size=y.shape)
    params = {
        "w": rng.normal(size=(3, 8)) / 3**0.5,
        "b": np.zeros(8),
        "v": rng.normal(size=(8, 1)) / 8**0.5,
    }
    loss = ncg.CompositeLoss(
        lambda p, x: jnp.tanh(x @ p["w"] + p["b"]) @ p["v"],
        lambda outputs, y: jnp.mean((outputs - y) ** 2),
    )
    params, x, y = jax.tree.map(lambda a: jnp.asarray(a, dtype), (params, x, y))
    return params, loss, x, y


def minibatches(x, y, size, steps):
    rng = np.random.default_rng(0)
    rows = np.stack([rng.choice(len(x), size, replace=False) for _ in range(steps)])
    return {"x": x[rows], "y": y[rows]}


# Runs that have the problem they are named after.


def wrong_sign():
    return run(ncg.newton_cg(), bowl, jnp.ones(3), 20, lambda w: -jnp.sinh(w))


def sum_for_mean():
    gradient = lambda w: 4 * jax.grad(rosenbrock)(w)  # noqa: E731
    return run(ncg.newton_cg(), rosenbrock, START, 60, gradient)


def mean_twice():
    return run(
        ncg.newton_cg(), bowl, 3 * jnp.ones(3), 20, gradient=lambda w: jnp.sinh(w) / 8
    )


def kink():
    loss = lambda w: jnp.abs(w[0]) + 10 * jnp.abs(w[1]) + w @ w / 100  # noqa: E731
    return run(ncg.newton_cg(), loss, jnp.array([1.0, 0.7]), 20)


def capped():
    solver = ncg.cg(maxiter=2)
    return run(ncg.newton_cg(solver=solver), valley, jnp.tile(START, 10), 100)


def concave():
    loss = lambda w: jnp.sum(jnp.log1p(w**2))  # noqa: E731
    return run(ncg.newton_cg(0.02), loss, jnp.array([9.0, 5.0, 7.0]), 20)


def too_small_batches():
    params, loss, x, y = regression(256)
    tx = ncg.newton_cg(curvature=ncg.gauss_newton())
    return run(tx, loss, params, 40, **minibatches(x, y, 16, 40))


def heavily_damped():
    return run(ncg.newton_cg(damping=100.0), bowl, jnp.ones(3), 20)


def damping_that_cannot_rise():
    damping = ncg.levenberg_marquardt(maximum=1.0)
    tx = ncg.newton_cg(linesearch=None, damping=damping)
    loss = lambda w: jnp.sum(jnp.sqrt(1 + w**2))  # noqa: E731
    return run(tx, loss, jnp.array([30.0, 20.0]), 20)


def infinite_loss():
    loss = lambda w: jnp.sum(jnp.log(w))  # noqa: E731
    return run(ncg.newton_cg(), loss, jnp.array([-1.0, 2.0]), 4)


def infinite_curvature():
    loss = lambda w: jnp.sum(jnp.abs(w) ** 1.5 + w)  # noqa: E731
    return run(ncg.newton_cg(), loss, jnp.array([0.0, 2.0]), 4)


def no_descent():
    tx = ncg.newton_cg(
        0.01, damping=0.0, linesearch=None, solver=ncg.cg(descent_threshold=100.0)
    )
    return run(tx, bowl, jnp.ones(3), 4)


def closes_over():
    tx, params = ncg.newton_cg(), jnp.ones(3)

    @jax.jit
    def update(params, state):
        ignorant = lambda _: bowl(params)  # noqa: E731
        return tx.update(jnp.sinh(params), state, params, value_fn=ignorant)

    return [update(params, tx.init(params))[1]]


def negative_preconditioner():
    class Negative(ncg.preconditioners.Preconditioner):
        def apply(self, state, r, damping):
            return -r

    return run(ncg.newton_cg(preconditioner=Negative()), bowl, jnp.ones(3), 4)


def overshooting():
    # Newton's step leads to -4 times where it starts, from everywhere.
    loss = lambda w: jnp.sum(jnp.abs(w) ** 1.2)  # noqa: E731
    return run(ncg.newton_cg(damping=0.0), loss, jnp.array([3.0, -2.0]), 20)


def single_precision():
    q, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(8, 8)))
    a = jnp.asarray(q @ np.diag(np.geomspace(1, 1e4, 8)) @ q.T, jnp.float32)
    return run(ncg.newton_cg(), lambda w: w @ a @ w / 2 - w.sum() + 5, jnp.zeros(8), 30)


def vanishing_cross_entropy(start=0.55, damping=0.1):
    """The loss is 0 in float32, and steps that damping makes short have to lower it."""

    def loss(p):
        z = p * jnp.array([30.0, 31.0, 25.0]) + jnp.arange(3.0)
        return jnp.sum(jax.nn.logsumexp(jnp.stack([z, 0 * z]), axis=0) - z)

    return run(ncg.newton_cg(damping=damping), loss, jnp.array(start), 60)


def no_learning_rate():
    return run(ncg.newton_cg(0.0), rosenbrock, START, 6)


def large_learning_rate():
    loss = lambda w: w @ (jnp.array([1.0, 2.0, 3.0]) * w)  # noqa: E731
    return run(ncg.newton_cg(2.5), loss, jnp.ones(3), 20)


def dead():
    loss = lambda w: jnp.sum(jax.nn.relu(w)) + 1  # noqa: E731
    return run(ncg.newton_cg(), loss, -jnp.ones(3), 3)


def never_updated():
    return ncg.newton_cg().init(jnp.ones(2))


def summed():
    tx = ncg.newton_cg(axis_name="devices")

    @jax.jit
    def update(w):
        loss = lambda w, x: jnp.sum((w - x) ** 2)  # noqa: E731
        value_and_grad = jax.value_and_grad(
            lambda w: jax.vmap(loss, (None, 0))(w, x).sum()
        )
        x = jnp.arange(6.0).reshape(2, 3)
        value, grads = value_and_grad(w)
        return jax.vmap(
            lambda x: tx.update(
                grads, tx.init(w), w, value_fn=loss, value=value, grad=grads, x=x
            )[1],
            axis_name="devices",
        )(x)

    return one(update(jnp.ones(3)), 0)


PROBLEMS = {
    # All steps are rejected, so the damping rises as well.
    wrong_sign: {"gradient_mismatch", "damping_rises"},
    sum_for_mean: {"gradient_mismatch"},
    mean_twice: {"gradient_mismatch"},
    kink: {"gradient_mismatch", "damping_rises"},
    capped: {"iterations"},
    concave: {"negative_curvature"},
    too_small_batches: {"noise"},
    heavily_damped: {"timid"},
    damping_that_cannot_rise: {"rejected"},
    infinite_loss: {"non_finite"},
    infinite_curvature: {"non_finite"},
    no_descent: {"steepest_descent"},
    closes_over: {"zero_curvature"},
    negative_preconditioner: {"indefinite_preconditioner"},
    overshooting: {"shortened"},
    single_precision: {"rounding"},
    vanishing_cross_entropy: {"rounding"},
    no_learning_rate: {"updates_not_applied"},
    large_learning_rate: {"loss_rises"},
    dead: {"zero_gradient"},
    never_updated: {"not_started"},
    summed: {"summed_loss"},
}


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.__name__)
def test_a_real_run_with_a_problem_gets_its_name(problem):
    diagnosis = ncg.diagnose(problem())
    assert {finding.name for finding in diagnosis.findings} == PROBLEMS[problem]
    assert not diagnosis.healthy
    for finding in diagnosis.findings:
        assert finding.problem.endswith(".") and finding.advice.rstrip(")")[-1] in ".?"
        if finding.name != "not_started":
            assert re.search(r"\d", finding.evidence)


def test_the_documented_names_are_those_that_occur():
    documented = re.findall(r"^    - ``(\w+)``:", ncg.diagnose.__doc__, re.MULTILINE)
    assert set(documented) == set.union(*PROBLEMS.values())


# Runs that have none.


def classification(dtype):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(40, 4)), dtype)
    y = jnp.asarray(rng.integers(0, 3, 40))

    def loss(w):
        fit = optax.softmax_cross_entropy_with_integer_labels(x @ w, y).mean()
        return fit + 1e-3 * jnp.sum(w**2)

    return ncg.newton_cg(), loss, jnp.zeros((4, 3), dtype), 30


def full_batch():
    # Of 60 examples the noise is fitted in the end, and steps are shortened indeed.
    params, loss, x, y = regression(240)
    return ncg.hessian_free(), loss.bind(x=x, y=y), params, 60


def test_an_average_over_batches_does_not_fit_the_noise_of_one():
    infos = too_small_batches()
    averaged = jnp.full_like(infos.solver_status, ncg.Status.ONE_STEP)
    assert names(infos) == ["noise"]
    assert names(infos._replace(solver_status=averaged)) == []


HEALTHY = {
    "rosenbrock": lambda: run(ncg.newton_cg(), rosenbrock, START, 60),
    "trust region": lambda: run(
        ncg.newton_cg(solver=ncg.steihaug(), damping=0.0, linesearch=None),
        rosenbrock,
        START,
        60,
    ),
    "network": lambda: run(*full_batch()),
}


@pytest.mark.parametrize("name", HEALTHY)
def test_no_false_alarm_at_any_time_of_a_healthy_run(name):
    infos = HEALTHY[name]()
    for end in range(1, len(infos.loss) + 1):
        assert names(until(infos, end)) == [], end


MINI_BATCHES = {
    "averaged gradient": {},
    "line search": dict(
        solver=ncg.cg(maxiter=2, rtol=0.2, forcing=None, warm_start=0.8),
        damping=ncg.levenberg_marquardt(calibration=0.01),
        linesearch=ncg.armijo(),
    ),
}


@pytest.mark.parametrize("name", MINI_BATCHES)
def test_no_false_alarm_on_large_mini_batches(name):
    params, loss, x, y = regression(2048)
    tx = ncg.stochastic_hessian_free(**MINI_BATCHES[name])
    infos = run(tx, loss, params, 60, **minibatches(x, y, 512, 60))
    for end in range(1, 61):
        assert names(until(infos, end)) == [], end
    if name != "line search":
        return
    # What saves them is that the gains are small, not that none is lost.
    lost = infos.loss[41:] - infos.next_loss[40:-1]
    assert lost.sum() > 0.5 * infos.actual_reduction[40:-1].sum()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_converging_to_rounding_is_a_problem_in_float32_alone(dtype):
    with jax.enable_x64(dtype == np.float64):
        tx, loss, w, steps = classification(dtype)
        infos = run(tx, loss, w, steps)
    assert infos.loss.dtype == dtype and infos.gradient_norm[-1] > 0
    in_float32 = dtype == np.float32
    for end in range(1, steps + 1):
        assert set(names(until(infos, end))) <= ({"rounding"} if in_float32 else set())
    diagnosis = ncg.diagnose(infos, last=10)
    assert diagnosis.healthy != in_float32
    assert ("below the rounding of float64" in diagnosis.summary) != in_float32


def test_steps_go_on_at_a_loss_of_zero_until_the_gradient_is_zero():
    infos = vanishing_cross_entropy(start=0.1, damping=ncg.levenberg_marquardt())
    assert infos.gradient_norm[-1] == 0
    assert ncg.diagnose(infos).healthy


def test_a_gradient_that_has_become_zero_is_no_problem():
    infos = run(ncg.newton_cg(), bowl, jnp.ones(3), 30)
    assert infos.gradient_norm[0] > 0 and not infos.gradient_norm[-15:].any()
    diagnosis = ncg.diagnose(infos, last=10)
    assert diagnosis.healthy and "exactly zero" in diagnosis.summary
    # From the first step on it is one.
    assert names(jax.tree.map(lambda x: x[-15:], infos)) == ["zero_gradient"]


# What it reads.


@pytest.fixture(scope="module")
def timid():
    return heavily_damped()


def test_states_and_infos_stacked_or_in_a_sequence(timid):
    expected = ncg.diagnose(timid)
    steps = [one(timid, k) for k in range(20)]
    state = ncg.scale_by_newton_cg().init(jnp.ones(3))
    states = [{"opt": (state._replace(info=info), ())} for info in steps]
    chunks = [until(timid, 7), jax.tree.map(lambda x: x[7:], timid)]
    for history in (steps, tuple(steps), collections.deque(steps), states, chunks):
        assert ncg.diagnose(history) == expected


def test_only_the_last_steps_count(timid):
    infos = jax.tree.map(
        lambda *x: np.concatenate(x), run(ncg.newton_cg(), bowl, jnp.ones(3), 12), timid
    )
    assert names(infos) == names(infos, last=12) == ["timid"]
    assert ncg.diagnose(infos).steps == 20
    assert ncg.diagnose([one(infos, k) for k in range(32)], last=12).steps == 12
    assert ncg.diagnose(infos, last=None).steps == 32
    assert names(infos, last=None) == []
    assert names(until(infos, 12)) == []


def test_few_steps_show_no_trend(timid):
    for end, found in ((1, []), (9, []), (10, ["timid"])):
        diagnosis = ncg.diagnose(until(timid, end))
        assert [f.name for f in diagnosis.findings] == found
        assert ("from 10 steps on" in diagnosis.summary) == (not found)


def test_steps_before_a_switch_are_not_examined(timid):
    tx = ncg.switch_after(3, optax.sgd(0.1), ncg.newton_cg())
    state = tx.init(jnp.ones(3))
    assert names(state) == ["not_started"]
    waiting = [ncg.get_info(state)] * 3
    assert ncg.diagnose(waiting + [timid]) == ncg.diagnose(timid)


def test_consequences_of_a_finding_are_not_reported():
    infos = infinite_loss()
    infos = jax.tree.map(lambda x: np.tile(x, 5), infos)
    infos = infos._replace(
        status=np.full(20, Status.REJECTED_NO_DECREASE, np.int32),
        damping=np.geomspace(1.0, 1e10, 20),
    )
    assert names(infos) == ["non_finite"]
    finite = infos._replace(loss=np.ones(20, np.float32))
    assert {"rejected", "damping_rises"} & set(names(finite))


def test_it_prints_as_text(timid):
    diagnosis = ncg.diagnose(timid)
    text = str(diagnosis)
    assert text == repr(diagnosis)
    assert max(map(len, text.splitlines())) <= 79
    unfolded = " ".join(text.split())
    finding = diagnosis.findings[0]
    for part in (diagnosis.summary, *finding[1:], "[timid]", "1. The steps"):
        assert part in unfolded
    assert "the damping is 100 " in finding.evidence


def test_errors(timid):
    with pytest.raises(ValueError, match="diagnose: the history is empty"):
        ncg.diagnose([])
    with pytest.raises(ValueError, match="one NewtonCGInfo, or a seq.*got 0 .* dict"):
        ncg.diagnose({"step": 1})
    with pytest.raises(ValueError, match="entry 2 of the history, a dict, holds 0"):
        ncg.diagnose([timid, timid, {"step": 1}])
    both = optax.chain(ncg.newton_cg(), ncg.newton_cg()).init(jnp.ones(2))
    with pytest.raises(ValueError, match="entry 0 of the history.*holds 2"):
        ncg.diagnose([both])
    with pytest.raises(ValueError, match=r"shape \(2, 10\).*x\[0\]"):
        ncg.diagnose(jax.tree.map(lambda x: x.reshape(2, 10), timid))
    with pytest.raises(ValueError, match="last must be an integer of at least 1"):
        ncg.diagnose(timid, last=0)
    with pytest.raises(TypeError, match="outside of jit"):
        jax.jit(lambda info: ncg.diagnose(info).steps)(timid)
