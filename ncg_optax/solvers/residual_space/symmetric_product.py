"""``A A^T`` with about half of the operations of a general matrix product."""

import jax
import jax.numpy as jnp

# Smaller products are not divided: a part has at least half as many rows.
SMALLEST = 256
# Products are divided at most so many times, whatever the size.
DEPTH = 4


def symmetric_product(a: jax.Array) -> jax.Array:
    r"""``A A^T``, shape=(m, m), for ``A`` of shape=(m, n).

    XLA has no symmetric rank-k product for CPUs. With the rows of :math:`A` in two
    halves,

    .. math::
      A A^T = \begin{pmatrix} A_1 A_1^T & (A_2 A_1^T)^T \\
                              A_2 A_1^T & A_2 A_2^T \end{pmatrix},

    where the blocks on the diagonal are computed in the same way. After ``k`` divisions
    this takes ``(1 + 2^-k) m^2 n`` operations; a general product takes ``2 m^2 n``.
    """
    return _divide(a, DEPTH)


def _divide(a: jax.Array, depth: int) -> jax.Array:
    if len(a) <= SMALLEST or depth == 0:
        return a @ a.T
    half = len(a) // 2
    below = a[half:] @ a[:half].T
    first, second = _divide(a[:half], depth - 1), _divide(a[half:], depth - 1)
    return jnp.block([[first, below.T], [below, second]])
