"""What a step costs, in gradients, by XLA's own count of floating-point operations.

The unit is one full-batch ``jax.value_and_grad``. Counted operations are the same on
every machine; seconds are reported beside them.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax

from benchmarks.scenarios import Scenario
from benchmarks.scenarios._base import Batch, Params

Curvature = Literal["hessian", "gauss_newton"]


class CostModel(NamedTuple):
    """Prices of the parts of a Newton-CG step, in gradients."""

    gradient_flops: float  # floating-point operations of the unit itself
    setup: float  # linearising the curvature, beyond what the gradient shares with it
    product: float  # one curvature product, after the set-up
    evaluation: float  # one evaluation of the loss

    def price(self, products: float, evaluations: float) -> float:
        """The cost of one step: its gradient, the set-up, products and evaluations."""
        return 1 + self.setup + products * self.product + evaluations * self.evaluation


def flops(function: Callable[..., Any], *args: Any) -> float:
    """Floating-point operations of a function once XLA has compiled it."""
    return counted(jax.jit(function).lower(*args).compile())


def counted(executable: Any) -> float:
    """Floating-point operations of an executable. XLA counts none in factorisations."""
    return executable.cost_analysis()["flops"]


def gradient_flops(scenario: Scenario, data: Batch) -> float:
    """The unit: one value and gradient."""
    data = scenario.with_key(data, jax.random.key(0))
    value_and_grad = jax.value_and_grad(scenario.value)
    return flops(lambda p, d: value_and_grad(p, **d), scenario.init(0), data)


def measure(scenario: Scenario, data: Batch, curvature: Curvature) -> CostModel:
    """Counts the operations of each part of a step on the full batch."""
    params = scenario.init(0)
    data = scenario.with_key(data, jax.random.key(0))
    linearise = {"hessian": _hessian, "gauss_newton": _gauss_newton}[curvature]

    def prepared(params: Params, data: Batch) -> Any:
        gradient = jax.value_and_grad(scenario.value)(params, **data)
        return gradient, linearise(scenario, params, data)

    unit = gradient_flops(scenario, data)
    # The linear maps carry their residuals as arrays, so that the product is lowered
    # with these as inputs: nothing of the primal pass is counted again.
    maps = jax.jit(lambda p, d: linearise(scenario, p, d))(params, data)
    return CostModel(
        gradient_flops=unit,
        setup=max(flops(prepared, params, data) / unit - 1, 0.0),
        product=flops(_apply, maps, params) / unit,
        evaluation=flops(lambda p, d: scenario.value(p, **d), params, data) / unit,
    )


def _hessian(scenario: Scenario, params: Params, data: Batch) -> tuple[Any, ...]:
    gradient = jax.grad(lambda p: scenario.value(p, **data))
    return (jax.linearize(gradient, params)[1],)


def _gauss_newton(scenario: Scenario, params: Params, data: Batch) -> tuple[Any, ...]:
    outputs, push = jax.linearize(lambda p: scenario.outputs(p, data), params)
    slope = jax.grad(lambda z: scenario.loss(z, data["y"]))
    return push, jax.linearize(slope, outputs)[1]


def _apply(maps: tuple[Any, ...], vector: Params) -> Params:
    """One product: with the Hessian, or with J' H J from the maps J and H."""
    if len(maps) == 1:
        return maps[0](vector)
    push, curve = maps
    (product,) = jax.linear_transpose(push, vector)(curve(push(vector)))
    return product
