"""The optimizers that compete, all behind the same two functions: init and advance."""

import math
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from optax.contrib import muon

import ncg_optax as ncg
from benchmarks.peers.soap import soap
from benchmarks.scenarios import Scenario
from benchmarks.scenarios._base import Batch, Params
from benchmarks.training import cost
from benchmarks.training.schedules import SCHEDULES

State = Any
NEWTON_BATCH = 512  # terms of the loss in a mini-batch of stochastic_hessian_free
POINTS = 32  # a run of mini-batch steps is looked at so many times at least
KFAC_INTERVAL = 5  # steps from one change of K-FAC's damping to the next, its default


class Setting(NamedTuple):
    """What is tuned for a first-order method; the others have no setting at all.

    Attributes:
        batch: examples per step, ``None`` for all of them.
        schedule: one of `SCHEDULES`.
        exponent: the learning rate in half decades, so that grids can grow exactly.
    """

    batch: int | None
    schedule: str
    exponent: int

    @property
    def learning_rate(self) -> float:
        """The learning rate.

        Example:
            >>> Setting(None, "constant", -4).learning_rate
            0.01
        """
        return 10.0 ** (self.exponent / 2)

    def __str__(self) -> str:
        batch = "full batch" if self.batch is None else f"batch {self.batch}"
        return f"lr {self.learning_rate:.1e}, {batch}, {self.schedule}"


class Problem(NamedTuple):
    """A scenario with its data and the budget of a run, in gradients."""

    scenario: Scenario
    train: Batch
    held_out: Batch
    budget: float

    @property
    def examples(self) -> int:
        return len(self.train["y"])


class Method(NamedTuple):
    """An optimizer bound to a problem.

    Attributes:
        init: ``init(params, seed, learning_rate) -> state``, jittable.
        advance: ``advance(params, state, data) -> (params, state)``, jittable: one
            step, or an epoch of mini-batch steps, or a part of one.
        spent: gradients that the latest `advance` cost, from its state.
        steps: optimizer steps in one `advance`.
        prices: what the parts of a Newton-CG step cost; the others need no model.
        compiles: whether `init` and `advance` compile what they need by themselves,
            and must not be jitted.
    """

    init: Callable[[Params, Any, Any], State]
    advance: Callable[[Params, State, Batch], tuple[Params, State]]
    spent: Callable[[State], float]
    steps: int = 1
    prices: cost.CostModel | None = None
    compiles: bool = False


class Contender(NamedTuple):
    """An optimizer that can enter the comparison.

    Attributes:
        name: what the command line calls it.
        description: one line for ``python -m benchmarks list``.
        build: binds it to a problem; only batch and schedule of the setting matter.
        exponents: learning rates to begin the tuning with, in half decades; empty if
            there is nothing to tune.
        minibatch: whether it takes shuffled mini-batches, as large as the scenario's
            `batch_sizes`, instead of the full batch.
        registers: whether it has to know the kind of loss by name.
        exact: whether it solves for the last digits, which takes float64.
        deterministic: whether it needs the same loss at every step.
        needs_poster: whether it takes its settings from the poster's code.
        batch: examples in a mini-batch, at most, if the scenario has no say in it.
    """

    name: str
    description: str
    build: Callable[[Problem, Setting | None], Method]
    exponents: range = range(0)
    minibatch: bool = False
    registers: bool = False
    exact: bool = False
    deterministic: bool = False
    needs_poster: bool = False
    batch: int | None = None

    def fits(self, scenario: Scenario) -> bool:
        """Whether it can enter the comparison on a scenario at all."""
        if self.registers and scenario.registration is None:
            return False
        if self.exact and not scenario.x64:
            return False
        if self.deterministic and scenario.random:
            return False
        if self.needs_poster:
            return scenario.poster is not None
        return bool(scenario.batch_sizes) if self.minibatch else scenario.full_batch


class _Walk(NamedTuple):
    """Where a method is in the examples, and what its latest `advance` cost.

    Attributes:
        inner: the state of the method itself.
        key: of this epoch's order, and of what its steps draw at random.
        part: of this epoch.
        cost: gradients of one batch.
    """

    inner: Any
    key: jax.Array
    part: jax.Array
    cost: jax.Array


class _Counted(NamedTuple):
    inner: optax.OptState
    gradients: jax.Array


class _Plan(NamedTuple):
    """How a method walks through the examples.

    Attributes:
        size: of a batch.
        parts: in which an epoch is cut, one for each `advance`.
        steps: in a part.
        total: steps in the budget, if each costs one gradient of its batch.
    """

    size: int
    parts: int
    steps: int
    total: int


def _plan(problem: Problem, setting: Setting | None) -> _Plan:
    examples = problem.examples
    size = min((setting and setting.batch) or examples, examples)
    epoch = examples // size
    parts = min(math.ceil(POINTS * epoch * size / examples / problem.budget), epoch)
    steps = epoch // parts
    total = max(int(problem.budget / (steps * size / examples)), 1) * steps
    return _Plan(size, parts, steps, total)


def _walk(
    problem: Problem,
    plan: _Plan,
    init: Callable[[Params, jax.Array], Any],
    step: Callable[[Params, Any, Batch], tuple[Params, Any, Any]],
) -> Method:
    """A method whose steps see the full batch, or shuffled mini-batches in turn.

    Args:
        problem: what to train on.
        plan: the mini-batches.
        init: ``init(params, learning_rate) -> state``.
        step: ``step(params, state, batch) -> (params, state, cost)``, the cost in
            gradients of the batch.
    """
    size, parts, steps, _ = plan

    def start(params: Params, seed: Any, learning_rate: Any) -> _Walk:
        inner = init(params, jnp.asarray(learning_rate))
        part, cost = jnp.zeros((), jnp.int32), jnp.zeros(())
        return _Walk(inner, jax.random.key(seed), part, cost)

    def body(carry: Any, batch: Batch) -> tuple[Any, jax.Array]:
        params, inner, cost = step(*carry, batch)
        return (params, inner), jnp.asarray(cost, float)

    def advance(params: Params, state: _Walk, data: Batch) -> tuple[Params, _Walk]:
        key, shuffle = jax.random.split(state.key)
        if size == problem.examples:
            batch = problem.scenario.with_key(data, shuffle)
            (params, inner), cost = body((params, state.inner), batch)
            return params, state._replace(inner=inner, key=key, cost=cost)
        rows = jax.random.permutation(shuffle, problem.examples)[: parts * steps * size]
        rows = rows.reshape(parts, steps, size)[state.part]
        batches = jax.tree.map(lambda leaf: leaf[rows], data)
        noise = jax.random.fold_in(shuffle, 1 + state.part)
        batches = problem.scenario.with_key(batches, jax.random.split(noise, steps))
        (params, inner), costs = jax.lax.scan(body, (params, state.inner), batches)
        ended = state.part == parts - 1
        return params, _Walk(
            inner,
            key=jnp.where(ended, key, state.key),
            part=jnp.where(ended, 0, state.part + 1),
            cost=costs.sum(),
        )

    def spent(state: _Walk) -> float:
        return float(state.cost) * size / problem.examples

    return Method(start, advance, spent, steps=steps)


def _first_order(
    make: Callable[[optax.Schedule], optax.GradientTransformation],
    problem: Problem,
    setting: Setting | None,
) -> Method:
    """A first-order method: every step costs one gradient."""
    assert setting is not None, "first-order methods are tuned"
    plan = _plan(problem, setting)
    shape = SCHEDULES[setting.schedule](plan.total)

    def transform(learning_rate: jax.Array) -> optax.GradientTransformation:
        # The learning rate is traced: one compilation serves the whole grid.
        return make(lambda count: learning_rate * shape(count))

    def init(params: Params, learning_rate: jax.Array) -> Any:
        return transform(learning_rate).init(params), learning_rate

    def step(params: Params, state: Any, batch: Batch) -> tuple[Params, Any, float]:
        inner, learning_rate = state
        grads = jax.grad(lambda p: problem.scenario.value(p, **batch))(params)
        updates, inner = transform(learning_rate).update(grads, inner, params)
        return optax.apply_updates(params, updates), (inner, learning_rate), 1.0

    return _walk(problem, plan, init, step)


_sgd = partial(optax.sgd, momentum=0.9, nesterov=True)


def _lbfgs(problem: Problem, _: Setting | None) -> Method:
    """`optax.lbfgs` as it comes; every call of value-and-gradient is one unit."""
    tx = optax.lbfgs()

    def init(params: Params, seed: Any, learning_rate: Any) -> _Counted:
        return _Counted(tx.init(params), jnp.zeros((), jnp.int32))

    def advance(params: Params, state: _Counted, data: Batch) -> tuple[Params, Any]:
        def value_fn(params: Params) -> jax.Array:
            return problem.scenario.value(params, **data)

        # The line search hands over value and gradient, but for the very first step.
        fresh = ~jnp.isfinite(optax.tree.get(state.inner, "value"))
        value, grads = optax.value_and_grad_from_state(value_fn)(
            params, state=state.inner
        )
        updates, inner = tx.update(
            grads, state.inner, params, value=value, grad=grads, value_fn=value_fn
        )
        search = optax.tree.get(inner, "info").num_linesearch_steps
        gradients = (search + fresh).astype(state.gradients.dtype)
        return optax.apply_updates(params, updates), _Counted(inner, gradients)

    # A step that has converged calls nothing; at no cost it would run for ever.
    return Method(init, advance, spent=lambda state: max(float(state.gradients), 1.0))


def newton_step(
    scenario: Scenario, tx: optax.GradientTransformationExtraArgs
) -> Callable[[Params, Any, Batch], tuple[Params, Any]]:
    """``step(params, state, data) -> (params, state)`` with a transform of ours."""
    loss = ncg.CompositeLoss(scenario.model, scenario.loss)

    def step(params: Params, state: Any, data: Batch) -> tuple[Params, Any]:
        value_fn = loss.bind(**data)
        value, grads = jax.value_and_grad(value_fn)(params)
        updates, state = tx.update(
            grads, state, params, value=value, grad=grads, value_fn=value_fn
        )
        return optax.apply_updates(params, updates), state

    return step


def _untuned(
    problem: Problem,
    batch: int | None,
    tx: optax.GradientTransformationExtraArgs,
    price: Callable[[ncg.step.NewtonCGInfo], jax.Array],
) -> Method:
    """A transform of ours as it comes, on batches or on all examples.

    Args:
        problem: what to train on.
        batch: examples per step, ``None`` for all of them.
        tx: the transform.
        price: what a step cost in gradients of its batch, from what it measured.
    """
    advance = newton_step(problem.scenario, tx)

    def init(params: Params, learning_rate: jax.Array) -> optax.OptState:
        return tx.init(params)

    def step(params: Params, state: Any, batch: Batch) -> tuple[Any, Any, Any]:
        params, state = advance(params, state, batch)
        return params, state, price(ncg.get_info(state))

    return _walk(problem, _plan(problem, Setting(batch, "constant", 0)), init, step)


def _newton(
    preset: str, curvature: cost.Curvature
) -> Callable[[Problem, Setting | None], Method]:
    """One of the presets of `ncg_optax`, with no settings at all."""

    def build(problem: Problem, _: Setting | None) -> Method:
        tx = getattr(ncg, preset)()
        prices = cost.measure(problem.scenario, problem.train, curvature)

        def price(info: ncg.step.NewtonCGInfo) -> jax.Array:
            return prices.price(info.batch_products, info.batch_evaluations)

        return _untuned(problem, None, tx, price)._replace(prices=prices)

    return build


def _residual_space(problem: Problem, _: Setting | None) -> Method:
    """Exact steps by `residual_space`, charged for its matrices as well.

    The passes through the network are the lesser part: with m the smaller and n the
    larger of the numbers of residuals and parameters, the Gram matrix takes 2 m^2 n
    operations, and each damping of the ladder a factorisation of m^3 / 3.
    """
    scenario = problem.scenario
    tx = ncg.newton_cg(curvature=ncg.gauss_newton(), solver=ncg.residual_space())
    outputs, params = jax.eval_shape(
        lambda: (scenario.model(scenario.init(0), problem.train["x"]), scenario.init(0))
    )
    sizes = [sum(x.size for x in jax.tree.leaves(tree)) for tree in (outputs, params)]
    m, n = sorted(sizes)
    unit = cost.gradient_flops(scenario, problem.train)

    def init(params: Params, seed: Any, learning_rate: Any) -> optax.OptState:
        return tx.init(params)

    def spent(state: optax.OptState) -> float:
        info = ncg.get_info(state)
        rungs = int(info.evaluations) - 2  # without the start and the line search
        algebra = 2 * m**2 * n + rungs * m**3 / 3
        return float(info.gradient_equivalents) + algebra / unit

    return Method(init, newton_step(problem.scenario, tx), spent)


class _Averaged(NamedTuple):
    """Mini-batch iterates and their running mean, which is what is looked at."""

    inner: optax.OptState
    iterate: Params
    count: jax.Array


def _running_mean(mean: Params, iterate: Params, count: jax.Array) -> Params:
    """The mean after one more iterate; the first one replaces it."""
    share = jnp.maximum(3 / (count + 3), 1 / 30)
    return optax.incremental_update(iterate, mean, share)


def _stochastic(
    problem: Problem,
) -> tuple[int, optax.GradientTransformationExtraArgs]:
    """`stochastic_hessian_free` as its documentation has it, and its batch size.

    An example with many terms of the loss, as a sequence is, counts as so many, but
    batches are not smaller than the smallest of the first-order methods.
    """
    scenario, terms = problem.scenario, problem.scenario.terms
    size = max(NEWTON_BATCH // terms, min(scenario.batch_sizes))
    sampling = ncg.sampling(1 / 4, min_examples=max(128 // terms, 1))
    tx = ncg.stochastic_hessian_free(sampling=sampling)
    return min(size, problem.examples // 4), tx


def _newton_minibatch(problem: Problem, _: Setting | None) -> Method:
    """`stochastic_hessian_free` on large batches, averaged.

    The running mean of the iterates is over about a third of the steps so far and at
    most the last thirty.
    """
    size, tx = _stochastic(problem)
    plan = _plan(problem, Setting(size, "constant", 0))
    advance = newton_step(problem.scenario, tx)

    def init(params: Params, learning_rate: jax.Array) -> _Averaged:
        return _Averaged(tx.init(params), params, jnp.zeros((), jnp.int32))

    def step(params: Params, state: _Averaged, batch: Batch) -> tuple[Any, Any, Any]:
        iterate, inner = advance(state.iterate, state.inner, batch)
        mean = _running_mean(params, iterate, state.count)
        cost = ncg.get_info(inner).gradient_equivalents
        return mean, _Averaged(inner, iterate, state.count + 1), cost

    return _walk(problem, plan, init, step)


def _sgd_then_newton(problem: Problem, setting: Setting | None) -> Method:
    """SGD for half of the budget, then `stochastic_hessian_free`, averaged.

    Both see the same batches, which are as large as the second one needs them.
    """
    assert setting is not None, "the learning rate of SGD is tuned"
    size, then = _stochastic(problem)
    plan = _plan(problem, setting._replace(batch=size))
    switch = max(plan.total // 2, 1)
    shape = SCHEDULES[setting.schedule](switch)

    def transform(rate: jax.Array) -> optax.GradientTransformationExtraArgs:
        sgd = _sgd(lambda count: rate * shape(count))
        return ncg.switch_after(switch, sgd, then)

    def init(params: Params, rate: jax.Array) -> tuple[_Averaged, jax.Array]:
        inner = transform(rate).init(params)
        return _Averaged(inner, params, jnp.zeros((), jnp.int32)), rate

    def step(params: Params, state: Any, batch: Batch) -> tuple[Any, Any, Any]:
        (inner, iterate, count), rate = state
        advance = newton_step(problem.scenario, transform(rate))
        iterate, inner = advance(iterate, inner, batch)
        mean = _running_mean(params, iterate, jnp.maximum(count - switch, 0))
        price = ncg.get_info(inner.then).gradient_equivalents
        cost = jnp.where(count < switch, 1.0, price)
        return mean, (_Averaged(inner, iterate, count + 1), rate), cost

    return _walk(problem, plan, init, step)


def _poster(problem: Problem, _: Setting | None) -> Method:
    """The algorithm of the poster (arXiv 2208.02017), as its code has it.

    The exact Hessian of the batch, a fixed damping, at most 20 iterations of plain CG
    to an absolute residual of 1e-5, the gradient in the place of a direction that does
    not descend by more than the damping, and a learning rate; no line search.
    """
    settings = problem.scenario.poster
    assert settings is not None, "the poster has no settings for this scenario"
    tau = settings.damping
    tx = ncg.newton_cg(
        settings.learning_rate,
        damping=tau,
        linesearch=None,
        solver=ncg.cg(
            maxiter=20,
            rtol=0.0,
            atol=1e-5,
            forcing=None,
            negative_curvature="ignore",
            descent_threshold=tau,
        ),
    )
    return _untuned(problem, settings.batch, tx, lambda i: i.gradient_equivalents)


def _kfac_jax() -> Any:
    """The package, made to work with jax 0.10, which it is not quite ready for."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            import kfac_jax
            from kfac_jax._src import tag_graph_matcher
    except (ImportError, AttributeError) as error:
        raise ModuleNotFoundError(
            "The optimizer `kfac` needs jax 0.10 and kfac-jax, which is not installed "
            'with the rest: pip install "kfac-jax==0.0.8".'
        ) from error

    def evaluate(equation: Any, values: Sequence[Any]) -> list[Any]:
        # Since jax 0.10 the functions of a primitive are among its parameters.
        primitive = equation.primitive
        outputs = primitive.bind(*values, **primitive.get_bind_params(equation.params))
        return outputs if primitive.multiple_results else [outputs]

    tag_graph_matcher.eval_jaxpr_eqn = evaluate
    return kfac_jax


def _kfac(problem: Problem, _: Setting | None) -> Method:
    """K-FAC by kfac-jax, with the settings that its own documentation recommends.

    What it costs is XLA's count for its whole step, except for the factorisations of
    its matrices, which XLA does not count: its seconds say more than its units.
    """
    kfac_jax = _kfac_jax()
    scenario = problem.scenario
    assert scenario.registration is not None, "kfac has to know the kind of loss"
    kind, weight = scenario.registration
    register = getattr(kfac_jax, f"register_{kind}_loss")

    def value(params: Params, data: Batch) -> jax.Array:
        outputs = scenario.model(params, data["x"])
        register(outputs, data["y"], weight=weight)
        return scenario.loss(outputs, data["y"])

    optimizer = kfac_jax.Optimizer(
        value_and_grad_func=jax.value_and_grad(value),
        l2_reg=0.0,
        use_adaptive_learning_rate=True,
        use_adaptive_momentum=True,
        use_adaptive_damping=True,
        initial_damping=1.0,
        damping_adaptation_interval=KFAC_INTERVAL,
        num_burnin_steps=0,  # of no use where every batch is the same
    )
    unit = cost.gradient_flops(scenario, problem.train)
    compiled: dict[bool, Any] = {}  # by whether the step adapts the damping as well

    def executable(number: int, *args: Any) -> Any:
        adapts = (number + 1) % KFAC_INTERVAL == 0
        if adapts not in compiled:
            with optimizer.staging_context():  # what it compiles joins our executable
                step = jax.jit(
                    lambda params, inner, key, batch: optimizer.step(
                        params, inner, key, batch=batch, global_step_int=number
                    )[:2]
                )
                compiled[adapts] = step.lower(*args).compile()
        return compiled[adapts]

    def init(params: Params, seed: Any, learning_rate: Any) -> Any:
        key, first = jax.random.split(jax.random.key(seed))
        inner = optimizer.init(params, first, problem.train)
        for number in range(KFAC_INTERVAL):
            executable(number, params, inner, first, problem.train)
        return inner, key, 0, 0.0

    def advance(params: Params, state: Any, data: Batch) -> tuple[Params, Any]:
        inner, key, number, _ = state
        key, now = jax.random.split(key)
        step = executable(number, params, inner, now, data)
        params, inner = step(params, inner, now, data)
        return params, (inner, key, number + 1, cost.counted(step) / unit)

    return Method(init, advance, spent=lambda state: state[-1], compiles=True)


def _tuned(
    name: str,
    what: str,
    make: Callable[[optax.Schedule], optax.GradientTransformation],
    exponents: range,
) -> tuple[Contender, Contender]:
    """A first-order method on the full batch, and on mini-batches."""
    build = partial(_first_order, make)
    return (
        Contender(
            name,
            f"{what}, full batch; learning rate and schedule tuned",
            build,
            exponents,
        ),
        Contender(
            f"{name}_minibatch",
            f"{what}, shuffled mini-batches; tuned like {name}",
            build,
            exponents,
            minibatch=True,
        ),
    )


_ADAM = _tuned("adam", "optax.adam", optax.adam, range(-7, -1))
_SGD = _tuned("sgd", "optax.sgd, Nesterov momentum 0.9", _sgd, range(-5, 1))
_ADAMW = _tuned("adamw", "optax.adamw", optax.adamw, range(-7, -1))
_MUON = _tuned("muon", "optax.contrib.muon", muon, range(-6, 0))
_SOAP = _tuned(
    "soap",
    "SOAP (Vyas et al. 2024), its decompositions in the seconds only",
    soap,
    range(-7, -1),
)

CONTENDERS: dict[str, Contender] = {
    contender.name: contender
    for contender in (
        Contender(
            "newton_cg",
            "ncg_optax.newton_cg(), full batch, no settings",
            _newton("newton_cg", "hessian"),
        ),
        Contender(
            "hessian_free",
            "ncg_optax.hessian_free(), full batch, no settings",
            _newton("hessian_free", "gauss_newton"),
        ),
        Contender(
            "residual_space",
            "ncg_optax.residual_space(), exact Gauss-Newton steps, no settings",
            _residual_space,
            exact=True,
            deterministic=True,
        ),
        _ADAM[0],
        _SGD[0],
        Contender(
            "lbfgs",
            "optax.lbfgs(), full batch, no settings",
            _lbfgs,
            deterministic=True,
        ),
        _ADAMW[0],
        _MUON[0],
        _SOAP[0],
        Contender(
            "kfac",
            "kfac-jax, full batch, no settings; units leave its factorisations out",
            _kfac,
            registers=True,
            deterministic=True,
        ),
        Contender(
            "stochastic_hessian_free",
            "ncg_optax.stochastic_hessian_free(), batches of 512 examples or tokens",
            _newton_minibatch,
            minibatch=True,
        ),
        Contender(
            "sgd_then_hessian_free",
            "SGD (learning rate tuned) for half of the budget, then "
            "stochastic_hessian_free",
            _sgd_then_newton,
            range(-5, 1),
            minibatch=True,
            batch=NEWTON_BATCH,
        ),
        Contender(
            "poster",
            "the poster's Newton-CG method with the poster's settings",
            _poster,
            needs_poster=True,
        ),
        _ADAM[1],
        _SGD[1],
        _ADAMW[1],
        _MUON[1],
        _SOAP[1],
    )
}
