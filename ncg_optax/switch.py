"""One optimizer for the first steps, another one after them."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ncg_optax._utils import pytree, validate


class SwitchAfterState(NamedTuple):
    """State of :func:`switch_after`.

    Attributes:
      steps_done: number of updates done, int32, shape=().
      first: state of the first optimizer.
      then: state of the second one.

    Examples:
      >>> import jax.numpy as jnp, optax
      >>> import ncg_optax as ncg
      >>> tx = ncg.switch_after(100, optax.sgd(0.1), ncg.newton_cg())
      >>> state = tx.init(jnp.zeros(2))
      >>> print(state.steps_done, ncg.explain(ncg.get_info(state.then).status))
      0 No step has been taken yet.
    """

    steps_done: jax.Array
    first: Any
    then: Any


def switch_after(
    steps: int,
    first: optax.GradientTransformation,
    then: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """Runs ``first`` for a number of steps, then ``then``.

    For example SGD first, then Newton-CG. The state of the second optimizer is
    initialised at the parameters at which it starts. Under ``jit`` only the active
    optimizer is computed (``lax.cond``); under ``vmap`` both are.

    Args:
      steps: number of updates by ``first``, at least 0.
      first: the first optimizer.
      then: the second one.

    Returns:
      A `optax.GradientTransformationExtraArgs`; both optimizers get the extra
      arguments of ``update``.

    Raises:
      TypeError: if ``steps`` is not an integer or an optimizer is not one of optax's.
      ValueError: if ``steps`` is negative. In ``update``: if ``params`` is missing.

    Examples:
      >>> import jax, jax.numpy as jnp, optax
      >>> import ncg_optax as ncg
      >>> f = lambda w: jnp.sum((w - 1.0) ** 2)
      >>> tx = ncg.switch_after(3, optax.sgd(0.1), ncg.newton_cg())
      >>> w = jnp.zeros(2)
      >>> state = tx.init(w)
      >>> for _ in range(5):
      ...     updates, state = tx.update(jax.grad(f)(w), state, w, value_fn=f)
      ...     w = optax.apply_updates(w, updates)
      ...     print(f"{f(w):.3f}")
      1.280
      0.819
      0.524
      0.000
      0.000
    """
    if not hasattr(steps, "dtype"):
        validate.integer("switch_after: steps", steps, low=0)
    for name, tx in (("first", first), ("then", then)):
        validate.component(
            f"switch_after: {name}", tx, optax.GradientTransformation, "optax.sgd(...)"
        )
    first = optax.with_extra_args_support(first)
    then = optax.with_extra_args_support(then)

    def init(params):
        return SwitchAfterState(
            steps_done=jnp.zeros((), jnp.int32),
            first=first.init(params),
            then=then.init(params),
        )

    def update(updates, state, params=None, **extra):
        if params is None:
            raise ValueError("switch_after needs params: update(grads, state, params).")
        validate.state("switch_after", state, SwitchAfterState)

        def run_first():
            new_updates, new_state = first.update(updates, state.first, params, **extra)
            return new_updates, new_state, state.then

        def run_then():
            # Initialised here: averages and scales may depend on the parameters.
            starts = state.steps_done == steps
            before = pytree.where(starts, then.init(params), state.then)
            new_updates, new_state = then.update(updates, before, params, **extra)
            return new_updates, state.first, new_state

        def like_updates(branch):
            new_updates, *states = branch()
            return pytree.cast_like(new_updates, updates), *states

        new_updates, first_state, then_state = jax.lax.cond(
            state.steps_done < steps,
            lambda: like_updates(run_first),
            lambda: like_updates(run_then),
        )
        return new_updates, SwitchAfterState(
            steps_done=jnp.asarray(optax.safe_increment(state.steps_done)),
            first=first_state,
            then=then_state,
        )

    return optax.GradientTransformationExtraArgs(init, update)
