"""What a loss function may return: a scalar, or a scalar and an auxiliary output."""

from typing import Any

import jax
import jax.numpy as jnp

PyTree = Any


def drop_aux(out: Any) -> Any:
    """The loss of ``loss`` or ``(loss, aux)``."""
    return out[0] if isinstance(out, tuple) else out


def has_aux(out: Any) -> bool:
    """Whether a loss function has returned ``(loss, aux)``."""
    return isinstance(out, tuple) and len(out) > 1


def split_aux(out: Any) -> tuple[jax.Array, PyTree]:
    """Loss and aux of ``loss`` or ``(loss, aux)``; the aux is None if there is none."""
    return scalar_loss(out), out[1] if has_aux(out) else None


def scalar_loss(out: Any) -> jax.Array:
    """The loss of ``loss`` or ``(loss, aux)`` as a real array of shape=().

    Raises:
      TypeError: if it is not a real floating-point scalar.
    """
    out = drop_aux(out)
    if not hasattr(out, "dtype") and not isinstance(out, (int, float)):
        raise TypeError(
            f"value_fn must return a scalar loss (or (loss, aux)), got {out!r} of type "
            f"{type(out).__name__}."
        )
    out = jnp.asarray(out)
    if out.shape != ():
        raise TypeError(
            f"value_fn must return a scalar loss, got an array of shape {out.shape}: "
            "take the mean over the examples."
        )
    if not jnp.issubdtype(out.dtype, jnp.floating):
        raise TypeError(
            f"value_fn must return a real floating-point loss, got dtype {out.dtype}."
        )
    return out
