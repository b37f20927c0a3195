"""Shapes of a learning rate over the steps, which begin or peak at one."""

from collections.abc import Callable

import jax.numpy as jnp
import optax


def noam(total: int) -> optax.Schedule:
    """Linear warm-up over a tenth of the steps, then 1/sqrt (Vaswani et al. 2017)."""
    warmup = max(total // 10, 1)
    return lambda count: jnp.minimum(
        (count + 1) / warmup, jnp.sqrt(warmup / (count + 1.0))
    )


SCHEDULES: dict[str, Callable[[int], optax.Schedule]] = {
    "constant": lambda total: optax.constant_schedule(1.0),
    "cosine": lambda total: optax.cosine_decay_schedule(1.0, total),
    "noam": noam,
}
