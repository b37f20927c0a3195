"""K-FAC by kfac-jax, which has to be installed besides."""

import warnings
from collections.abc import Sequence
from typing import Any

import jax

from benchmarks.peers.base import Method, Problem, Setting
from benchmarks.scenarios._base import Batch, Params
from benchmarks.training import cost

INTERVAL = 5  # steps from one change of the damping to the next, K-FAC's default


def _kfac_jax() -> Any:
    """The package, made to work with jax 0.10, which it does not support fully."""
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


def _optimizer(kfac_jax: Any, problem: Problem) -> Any:
    """The optimizer with the settings that its own documentation recommends."""
    scenario = problem.scenario
    assert scenario.registration is not None, "kfac has to know the kind of loss"
    kind, weight = scenario.registration
    register = getattr(kfac_jax, f"register_{kind}_loss")

    def value(params: Params, data: Batch) -> jax.Array:
        outputs = scenario.model(params, data["x"])
        register(outputs, data["y"], weight=weight)
        return scenario.loss(outputs, data["y"])

    return kfac_jax.Optimizer(
        value_and_grad_func=jax.value_and_grad(value),
        l2_reg=0.0,
        use_adaptive_learning_rate=True,
        use_adaptive_momentum=True,
        use_adaptive_damping=True,
        initial_damping=1.0,
        damping_adaptation_interval=INTERVAL,
        num_burnin_steps=0,  # of no use where every batch is the same
    )


def kfac(problem: Problem, _: Setting | None) -> Method:
    """K-FAC on the full batch.

    Its cost is XLA's count for its whole step, except for the factorisations of its
    matrices, which XLA does not count: its seconds say more than its units.
    """
    optimizer = _optimizer(_kfac_jax(), problem)
    unit = cost.gradient_flops(problem.scenario, problem.train)
    compiled: dict[bool, Any] = {}  # by whether the step adapts the damping as well

    def executable(number: int, *args: Any) -> Any:
        adapts = (number + 1) % INTERVAL == 0
        if adapts not in compiled:
            with optimizer.staging_context():  # its programs join our executable
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
        for number in range(INTERVAL):
            executable(number, params, inner, first, problem.train)
        return inner, key, 0, 0.0

    def advance(params: Params, state: Any, data: Batch) -> tuple[Params, Any]:
        inner, key, number, _ = state
        key, now = jax.random.split(key)
        step = executable(number, params, inner, now, data)
        params, inner = step(params, inner, now, data)
        return params, (inner, key, number + 1, cost.counted(step) / unit)

    return Method(init, advance, spent=lambda state: state[-1], compiles=True)
