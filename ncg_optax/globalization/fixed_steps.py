"""Step sizes for ``linesearch=None``."""

import dataclasses

import jax.numpy as jnp

from ncg_optax.globalization.base import (
    Line,
    LineSearch,
    SearchResult,
)


@dataclasses.dataclass(frozen=True)
class full_step(LineSearch):
    """Takes the full step and does not evaluate the loss at its end."""

    tolerates_rise = True

    def search(self, line: Line) -> SearchResult:
        """A step size of 1."""
        loss = line.loss
        return SearchResult(
            step_size=jnp.ones((), loss.dtype),
            loss=loss,
            evaluations=jnp.zeros((), jnp.int32),
            accepted=jnp.ones((), bool),
        )


@dataclasses.dataclass(frozen=True)
class single_trial(LineSearch):
    """Takes the full step if the loss rises by rounding at most, else no step."""

    def search(self, line: Line) -> SearchResult:
        """A step size of 1 or 0, after one evaluation."""
        loss = line.loss
        trial = line.loss_at(jnp.ones((), loss.dtype))
        accepted = trial <= loss + line.allowed_rise  # False for NaN
        return SearchResult(
            step_size=accepted.astype(loss.dtype),
            loss=jnp.where(accepted, trial, loss),
            evaluations=jnp.ones((), jnp.int32),
            accepted=accepted,
        )
