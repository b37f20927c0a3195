"""The covariance of the parameters at a minimum."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from ncg_optax._utils import pytree, validate
from ncg_optax.curvature.base import Curvature, curvature_product
from ncg_optax.curvature.hessian import hessian
from ncg_optax.minimization.symmetric_solve import symmetric_solve

PyTree = Any


@dataclasses.dataclass(frozen=True, eq=False)
class Covariance:
    """The matrix ``scale B^-1``; :func:`covariance` makes it.

    Attributes:
      params: the parameters at which the curvature ``B`` is taken.
      product: ``v -> B v``.
      scale: a number.

    Examples:
      >>> import jax.numpy as jnp
      >>> import ncg_optax as ncg
      >>> c = ncg.covariance(lambda w: 2 * w[0] ** 2 + w[1] ** 2, jnp.zeros(2))
      >>> print(c.times(jnp.ones(2)).round(2), jnp.diag(c.dense()).round(2))
      [0.25 0.5 ] [0.25 0.5 ]
    """

    params: PyTree
    product: Callable[[PyTree], PyTree]
    scale: Any

    def dense(self) -> jax.Array:
        """The matrix of shape (n, n), in the order of `jax.flatten_util.ravel_pytree`.

        It takes n products, n^2 numbers and n^3 operations. All entries are NaN if
        ``B`` is not positive definite up to rounding: then the data do not determine
        the parameters.
        """
        vector, unravel = ravel_pytree(self.params)

        def column(v):
            return ravel_pytree(self.product(unravel(v)))[0]

        dtype = jnp.promote_types(vector.dtype, jnp.float32)
        eye = jnp.eye(vector.size, dtype=dtype)
        matrix = jax.lax.map(column, eye.astype(vector.dtype)).astype(dtype)
        factor = jnp.linalg.cholesky((matrix + matrix.T) / 2)
        pivots = jnp.square(jnp.diag(factor)) / jnp.diag(matrix)
        positive = jnp.all(pivots > vector.size * jnp.finfo(dtype).eps)
        inverse = jax.scipy.linalg.cho_solve((factor, True), eye)
        inverse = jnp.where(positive, inverse, jnp.nan)
        return self.scale * inverse

    def times(self, v: PyTree) -> PyTree:
        """The covariance times a tree like the parameters, by conjugate gradients.

        NaN if the system has no accurate solution, because the data do not determine
        the parameters.
        """
        solution = symmetric_solve(self.product, v)
        rest = jax.tree.map(jnp.subtract, self.product(solution), v)
        norm = pytree.norm(v)
        solved = pytree.norm(rest) <= 1e-2 * norm
        return jax.tree.map(
            lambda x: jnp.where(solved, self.scale * x, jnp.nan), solution
        )

    def diagonal(self, samples: int, seed: int = 0) -> PyTree:
        r"""An estimate of the variances, a tree like the parameters.

        :math:`\operatorname{diag}(C) = E[v \odot C v]` over random signs :math:`v`
        (Bekas, Kokiopoulou and Saad 2007). The standard error of an entry is
        :math:`\sqrt{\sum_{j \ne i} |C_{ij}|^2 / \text{samples}}`.

        Args:
          samples: number of solves, at least 1.
          seed: of the random signs.
        """
        validate.integer("diagonal: samples", samples, low=1)
        key = jax.random.key(seed)

        def add(i, total):
            v = pytree.random_signs(jax.random.fold_in(key, i), self.params)
            return jax.tree.map(lambda t, a, b: t + a * b, total, v, self.times(v))

        zeros = pytree.zeros_like(self.params)
        total = jax.lax.fori_loop(0, samples, add, zeros)
        return pytree.scale(total, 1 / samples)


def covariance(
    value_fn: Callable[..., Any],
    params: PyTree,
    *,
    scale: jax.typing.ArrayLike = 1.0,
    curvature: Curvature | None = None,
    **data: Any,
) -> Covariance:
    r"""The covariance of the parameters at a minimum, ``scale`` times ``B^-1``.

    If ``value_fn`` is a negative log-likelihood the ``scale`` is 1, and the result is
    the inverse of the observed information (with :func:`hessian`) or of the expected
    one (with :func:`gauss_newton`). If it is the mean of the squared residuals of m
    observations with noise of unknown variance, and there are n parameters, the scale
    is

    .. math::
      \frac{2 f}{m - n}

    as in `scipy.optimize.curve_fit` (with :func:`gauss_newton`).

    Args:
      value_fn: the loss, as for :func:`minimize`.
      params: its minimum, a pytree of real arrays.
      scale: a number, or an array of shape=().
      curvature: :func:`hessian` if None.
      **data: further arguments of ``value_fn``, by name.

    Returns:
      A :class:`Covariance`: ``dense()``, ``times(v)`` and ``diagonal(samples)``.

    Raises:
      TypeError: if ``curvature`` is not a :class:`Curvature`, or as
        :func:`curvature_product`.

    Examples:
      A line through six points, with the standard deviations of its two parameters:

      >>> import jax.numpy as jnp
      >>> import ncg_optax as ncg
      >>> x, y = jnp.arange(6.0), jnp.array([0.1, 0.9, 2.2, 2.8, 4.1, 5.0])
      >>> loss = lambda w, x, y: jnp.mean((w[0] + w[1] * x - y) ** 2)
      >>> w, _, result = ncg.minimize(loss, jnp.zeros(2), x=x, y=y)
      >>> c = ncg.covariance(loss, w, scale=2 * result.value / (6 - 2), x=x, y=y)
      >>> with jnp.printoptions(precision=3):
      ...     print(w, jnp.sqrt(jnp.diag(c.dense())))
      [0.038 0.991] [0.118 0.039]
    """
    curvature = hessian() if curvature is None else curvature
    params = jax.tree.map(jnp.asarray, params)
    validate.trainable_tree("params", params)
    if any(jnp.iscomplexobj(x) for x in jax.tree.leaves(params)):
        raise TypeError("covariance: params must be real, got complex ones.")
    product = curvature_product(curvature, value_fn, params, **data)
    return Covariance(params, product, scale)
