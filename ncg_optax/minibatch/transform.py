"""The transformation: Adam in the eigenbases of Kronecker factors."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ncg_optax._utils import pytree, validate
from ncg_optax.curvature.base import Curvature
from ncg_optax.minibatch.batch import curvature_probe, read_batch
from ncg_optax.minibatch.eigenbasis import eigenbases
from ncg_optax.minibatch.settings import complete
from ncg_optax.minibatch.state import first_state, require_own, without_masked_nodes
from ncg_optax.minibatch.step import next_step
from ncg_optax.step import mask as masks

PyTree = Any


def kronecker_adam(
    learning_rate: optax.ScalarOrSchedule | None = None,
    *,
    curvature: Curvature | None = None,
    bases: eigenbases = eigenbases(),
    mask: PyTree | Callable[[PyTree], PyTree] | None = None,
    axis_name: str | tuple[str, ...] | None = None,
    seed: int = 0,
) -> optax.GradientTransformationExtraArgs:
    r"""Adam in the eigenbases of Kronecker factors, for mini-batches.

    For each leaf, a matrix :math:`X` of shape (m, n) with gradient :math:`G`,

    .. math::
      m \leftarrow \beta_1 m + (1 - \beta_1)\, Q_L^H G Q_R, \qquad
      v \leftarrow \beta_2 v + (1 - \beta_2)\, |Q_L^H G Q_R|^2, \qquad
      X \leftarrow X - \eta\, Q_L \frac{m}{\sqrt v} Q_R^H

    with :math:`\beta = (0.9, 0.95)`. The bases :math:`Q_L` and :math:`Q_R` are near the
    eigenvectors of the running means of :math:`G G^H` and :math:`G^H G`. One iteration
    ``Q <- qr(L Q)`` in each tenth step, and in each second one of the first twenty,
    updates them, and the moments are turned along. Kernels of more than two axes are
    reshaped to (product of all axes but the last, last axis). Vectors, and sides
    longer than ``bases.max_size``, 256, are not rotated: there it is Adam.

    The learning rate after :math:`t` steps is found,

    .. math::
      \eta = \frac{\min(d, \sqrt{0.01\, d})}{\sqrt{1 + t / 300}}

    where :math:`d` is the distance to the solution in the largest component, estimated
    in the eigenbases as Prodigy does. :math:`d` rises from 3e-4 within some twenty
    steps. Where the loss does not depend on the length of nearly all weights, as with
    batch normalisation, :math:`d` is at least 3 % of their root mean square, up to
    0.01, after the first step. This is recognised by gradients of the first ten steps
    that are orthogonal to the weights of each unit.

    The iterates keep the noise of the last few batches, and no schedule reduces it. So
    evaluate the model at the running average of the iterates,
    :func:`averaged_params`, which the state contains.

    After the first one a batch changes little by itself: a gradient of more than three
    times the usual norm is reduced, the more the longer it is, and a batch whose loss
    or gradient is not finite is rejected. Then only ``count`` and ``info`` change.
    Nothing here evaluates the loss, so ``update`` needs no ``value_fn``. Parameters of
    16 bits round away the small first steps, from which the learning rate is found:
    keep them in float32, or give a learning rate.

    By default there is no curvature in it. With ``curvature``, the bases are those of
    gradients and of products of the curvature with random vectors, one at each refresh,
    on a quarter of the batch, but at least 32 examples.
    For full batches, and whenever the noise of the batches is small,
    :func:`hessian_free` is far better.

    Cost: one gradient, and :math:`4 m n (m + n)` operations per leaf for the rotations
    of a step (less with blocks, :class:`ncg_optax.minibatch.eigenbases`); a product
    costs a quarter at each refresh. Memory: at most :math:`2 (m^2 + n^2)` numbers per
    leaf for the bases, and five vectors of the size of the
    parameters (three with a learning rate): two moments, the average, and for the
    distance the start and a sum of gradients.

    Args:
      learning_rate: :math:`\eta`, a number, an optax schedule of the number of steps
        done, or None to find it. A number is reached in the first twenty steps; a
        schedule is taken as it is.
      curvature: None, or :func:`gauss_newton` or another :class:`Curvature`. Then
        ``update`` needs ``value_fn``.
      bases: :class:`ncg_optax.minibatch.eigenbases`: the longest side that is rotated,
        and in blocks of which length.
      mask: a pytree of bools (or a prefix, or a function of the parameters that
        returns one): leaves with True are trained. None trains all leaves.
      axis_name: mapped axis name(s) of pmap, shard_map or vmap over which the batch
        is split; gradients are averaged over them. Under ``shard_map`` take the
        gradient with :func:`value_and_grad`.
      seed: seed of the random vectors of the curvature products.

    Returns:
      A `optax.GradientTransformationExtraArgs`: ``update(grads, state, params)``.
      ``value`` is checked and reported if it is given; ``value_fn`` is used for
      ``curvature`` alone; other extra arguments are passed to it or ignored.
      :func:`get_info` returns a :class:`ncg_optax.minibatch.KroneckerAdamInfo`.

    Raises:
      TypeError: if a setting has the wrong type. In ``update``: if a trained leaf is
        not floating-point or complex, or if ``state`` is that of another optimizer.
      ValueError: if a number is out of range. In ``update``: if ``params`` is missing,
        or ``value_fn`` with ``curvature``, or if gradients and parameters differ in
        structure.

    References:
      Vyas et al., SOAP: Improving and stabilizing Shampoo using Adam, 2024
      (arXiv 2409.11321); Lin et al., Understanding and improving Shampoo and SOAP via
      Kullback-Leibler minimization, 2025 (arXiv 2509.03378), for the QR iteration;
      Mishchenko and Defazio, Prodigy: An expeditiously adaptive parameter-free learner,
      2023 (arXiv 2306.06101); Shamir and Zhang, Stochastic gradient descent for
      non-smooth optimization, 2013, for the weights of the average.

    Examples:
      >>> import jax, jax.numpy as jnp, optax
      >>> import ncg_optax as ncg
      >>> def loss(params, x, y):
      ...     return jnp.mean((jnp.tanh(x @ params["a"]) @ params["b"] - y) ** 2)
      >>> tx = ncg.kronecker_adam()
      >>> @jax.jit
      ... def step(params, state, x):
      ...     grads = jax.grad(loss)(params, x, jnp.sin(x[:, :1]))
      ...     updates, state = tx.update(grads, state, params)
      ...     return optax.apply_updates(params, updates), state
      >>> keys = jax.random.split(jax.random.key(0), 3)
      >>> a, b = (jax.random.normal(k, s) for k, s in zip(keys, ((2, 16), (16, 1))))
      >>> params = {"a": a, "b": b / 4}
      >>> state = tx.init(params)
      >>> batches = jax.random.normal(keys[2], (300, 64, 2))
      >>> for x in batches:
      ...     params, state = step(params, state, x)
      >>> average = ncg.averaged_params(state, params)
      >>> x = batches.reshape(-1, 2)
      >>> bool(loss(average, x, jnp.sin(x[:, :1])) < 0.01)
      True
    """
    settings = complete(learning_rate, curvature, bases, mask, axis_name, seed)

    def first(trained):
        return first_state(trained, learning_rate is None, bases)

    def init(params):
        params = without_masked_nodes(params)
        trained = masks.select(masks.resolve(mask, params), params)
        # optax.tree.map_params calls init with a placeholder that has no leaves.
        placeholder = not isinstance(params, (dict, list, tuple, type(None)))
        validate.trainable_tree("params", trained, empty_ok=placeholder)
        return first(trained)

    def update(updates, state, params=None, *, value_fn=None, **extra):
        batch = read_batch(settings, updates, params, value_fn, extra.get("value"))
        require_own(state, jax.eval_shape(first, batch.params))

        probe = curvature_probe(settings, batch, params, state.count, value_fn, extra)
        step = next_step(settings, batch, state, probe)
        old = pytree.where(step.damaged, first(batch.params), step.state_if_rejected)
        new = pytree.cast_like(step.state, state)
        kept = pytree.where(step.usable, new, old)._replace(
            count=jnp.asarray(optax.safe_increment(state.count)), info=new.info
        )
        grads, params = without_masked_nodes(updates), without_masked_nodes(params)
        moved = pytree.cast_like(step.moved, masks.select(batch.trained, grads))
        zeros = masks.frozen_updates(grads, params)
        leaves = jax.tree.leaves(masks.merge(batch.trained, moved, zeros))
        return jax.tree.unflatten(jax.tree.structure(updates), leaves), kept

    return optax.GradientTransformationExtraArgs(init, update)
