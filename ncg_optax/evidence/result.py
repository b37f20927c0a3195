"""The result of a Bayesian fit, and its predictions."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from ncg_optax._utils import pytree
from ncg_optax.evidence.likelihoods import LIKELIHOODS
from ncg_optax.evidence.loop import CHUNK
from ncg_optax.evidence.posterior import Posterior
from ncg_optax.losses.arguments import select_arguments
from ncg_optax.losses.composite import CompositeLoss
from ncg_optax.losses.objective import as_objective
from ncg_optax.solvers.residual_space.weighted_jacobian import weighted_jacobian

PyTree = Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class BayesianFit:
    """A fit with a Gaussian approximation of the posterior; a pytree.

    Attributes:
      params: the parameters, in the structure and dtypes of those at the start.
      noise: standard deviation of the noise of each output, in units of the targets,
        shape=outputs.shape[1:]; ones if the likelihood has no noise level.
      prior_precision: the weight decay alpha, one over the variance of the prior,
        shape=().
      effective_parameters: gamma, between 0 and the number of parameters, shape=().
      log_evidence: natural logarithm of the probability (density) of the targets,
        given the model, by Laplace's approximation, shape=(). Larger is better; minus
        infinity if the loss or its Jacobian was not finite at the start.
      iterations: number of steps to the last point that was examined, int32, shape=().
      status: a :class:`Status` code, int32, shape=(); :func:`explain` it.
      converged: whether the evidence rose no further, bool, shape=().
      posterior: the matrices that :meth:`predict` needs.
      scale: of the parameters, one over the root of the prior's precision, shape=().
      mode: how the rows of the Jacobian are computed, int32, shape=().
      model_fn: the model.
      likelihood: its name.

    Examples:
      The best of four random starts:

      >>> import jax
      >>> import jax.numpy as jnp
      >>> import ncg_optax as ncg
      >>> x = jnp.linspace(-1, 1, 40)
      >>> y = jnp.sin(3 * x) + 0.1 * jax.random.normal(jax.random.key(0), (40,))
      >>> model = lambda w, x: jnp.tanh(x[:, None] * w[0] + w[1]) @ w[2]
      >>> starts = jax.random.normal(jax.random.key(1), (4, 3, 5))
      >>> fits = jax.vmap(lambda w: ncg.bayesian_fit(model, w, y, x=x))(starts)
      >>> best = jax.tree.map(lambda a: a[jnp.argmax(fits.log_evidence)], fits)
      >>> print(best.params.shape, best.noise.round(1))
      (3, 5) 0.1
    """

    params: PyTree
    noise: jax.Array
    prior_precision: jax.Array
    effective_parameters: jax.Array
    log_evidence: jax.Array
    iterations: jax.Array
    status: jax.Array
    converged: jax.Array
    posterior: Posterior = dataclasses.field(repr=False)
    scale: jax.Array = dataclasses.field(repr=False)
    mode: jax.Array = dataclasses.field(repr=False)
    model_fn: Callable[..., jax.Array] = dataclasses.field(metadata={"static": True})
    likelihood: str = dataclasses.field(metadata={"static": True})

    def predict(self, **data: Any) -> tuple[jax.Array, jax.Array]:
        r"""The outputs for new data, and their standard deviations.

        With the likelihood ``"normal"`` the standard deviation is that of a new target,

        .. math::
          \sqrt{1/\beta + g^T (\beta J^T J + \alpha I)^{-1} g},

        where :math:`g` is the gradient of the output. With the others it is that of the
        outputs, which are logits: the probability
        :math:`\sigma(z / \sqrt{1 + \pi s^2/8})` takes it into account (MacKay 1992).

        Args:
          **data: the arguments of the model, by name.

        Returns:
          ``(outputs, std)``, arrays of the same shape.

        Raises:
          TypeError: if the model lacks an argument.
          ValueError: if the outputs have no axis of examples.
        """
        with jax.default_matmul_precision("highest"):
            return self._predict(select_arguments("predict", self.model_fn, data))

    def _predict(self, data: dict[str, Any]) -> tuple[jax.Array, jax.Array]:
        theta, unravel = ravel_pytree(pytree.widen(self.params))

        def model(theta, **data):
            return self.model_fn(unravel(theta), **data)

        outputs = model(theta, **data)
        if not outputs.shape:
            raise ValueError(
                "predict: the outputs must have the examples along the first axis, got "
                "the shape (); of a single example pass a batch of one."
            )
        if not outputs.size:
            return outputs, outputs
        loss = CompositeLoss(model, lambda outputs: jnp.sum(jnp.square(outputs)) / 2)
        jacobian = weighted_jacobian(
            as_objective(loss, data), theta, self.mode, "auto", CHUNK
        )
        block = jacobian.blocks[0]
        # Rows of the Jacobian itself: the eigenvectors of the unit matrix need not be
        # in its order.
        eye = jnp.eye(block.root.shape[-1], dtype=block.root.dtype)
        unit = block._replace(root=jnp.broadcast_to(eye, block.root.shape))
        rows = jacobian._replace(blocks=[unit]).rows(CHUNK)
        variance = self.posterior.variances(rows.astype(theta.dtype) * self.scale)
        variance = variance.reshape(outputs.shape)
        if LIKELIHOODS[self.likelihood].has_noise:
            variance += jnp.square(self.noise)
        return outputs, jnp.sqrt(variance).astype(outputs.dtype)
