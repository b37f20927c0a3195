"""Dense networks with a Gaussian over every weight (Blundell et al. 2015).

The posterior gives each weight a mean and a standard deviation of its own. The prior of
a weight is a Gaussian of variance `PRIOR_GAIN` / fan-in, so that it says the same of
the outputs however wide the network is; the parameters are in units of its deviation,
in which it is N(0, 1). Training minimises the negative evidence lower bound (ELBO) per
example::

    E[-log p(y | x, weights)] + KL(posterior || prior) / examples

with one draw of the noise for each step, or a few, which the key fixes.

It begins close to the prior. With small deviations instead most of the loss would be
the divergence of weights that the data say nothing of: a sum of many small slopes, to
which damping and a common learning rate leave next to nothing.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.scenarios._base import Batch
from benchmarks.scenarios._networks import accuracy, softmax_cross_entropy

Gaussian = dict[str, jax.Array]
Layers = list[Gaussian]
Outputs = dict[str, Any]
Activation = Callable[[jax.Array], jax.Array]

PRIOR_GAIN = 16.0  # variance of a unit over the mean square of its inputs
INITIAL_MEAN = 0.1  # of a weight, in size
INITIAL_DEVIATION = 1.0  # the prior's own
DRAWS = 20  # of the weights, which a prediction averages over


def init_mean_field(sizes: Sequence[int], seed: int) -> Layers:
    """Layers close to the prior: small means, and its deviations, as logarithms."""

    def layer(key: jax.Array, fan_in: int, fan_out: int) -> Gaussian:
        shape = fan_in + 1, fan_out  # the last row holds the biases
        return {
            "mean": INITIAL_MEAN * jax.random.normal(key, shape),
            "log_deviation": jnp.full(shape, math.log(INITIAL_DEVIATION)),
        }

    keys = jax.random.split(jax.random.key(seed), len(sizes) - 1)
    return list(map(layer, keys, sizes[:-1], sizes[1:]))


def linear(layer: Gaussian, x: jax.Array, key: jax.Array) -> jax.Array:
    """Outputs of a layer, with weights drawn anew for each example.

    A sum of Gaussians is one, so the sum is drawn instead of its terms: the local
    reparameterisation (Kingma et al. 2015). It costs two products of matrices, not one
    for each example, and examples share no noise: its mean over them stays small.
    """
    x = jnp.concatenate([x, jnp.ones((len(x), 1))], axis=-1)
    x = x * math.sqrt(PRIOR_GAIN / x.shape[-1])  # the weights are in the prior's units
    variance = x**2 @ jnp.exp(2 * layer["log_deviation"])
    noise = jax.random.normal(key, variance.shape)
    return x @ layer["mean"] + jnp.sqrt(variance) * noise


def logits(
    layers: Layers, x: jax.Array, key: jax.Array, activation: Activation
) -> jax.Array:
    """One draw of the network's outputs, shape=(examples, classes)."""
    first, *others = zip(layers, jax.random.split(key, len(layers)), strict=True)
    x = linear(first[0], x, first[1])
    for layer, noise in others:
        x = linear(layer, activation(x), noise)
    return x


def posterior(layers: Layers) -> list[Gaussian]:
    """Means and deviations, which the divergence is convex in, as outputs.

    The parameters are the logarithms of the deviations, which cannot become negative.
    The divergence is convex in those as well, but has next to no curvature where the
    deviations are small: a Newton step would be far too long. Through the deviations
    Gauss-Newton sees a curvature of at least one in each logarithm.
    """
    return [
        {"mean": layer["mean"], "deviation": jnp.exp(layer["log_deviation"])}
        for layer in layers
    ]


def divergence(gaussians: Sequence[Gaussian]) -> jax.Array:
    """KL divergence of the Gaussians from standard normal ones, in nats."""

    def one(gaussian: Gaussian) -> jax.Array:
        mean, deviation = gaussian["mean"], gaussian["deviation"]
        return jnp.sum(0.5 * (mean**2 + deviation**2 - 1) - jnp.log(deviation))

    return sum((one(gaussian) for gaussian in gaussians), start=jnp.zeros(()))


def classifier(
    activation: Activation, draws: int = 1
) -> Callable[[Layers, jax.Array, jax.Array], Outputs]:
    """The model: logits, and the posterior for the divergence.

    The second axis of the logits is that of the draws.
    """
    draw = partial(logits, activation=activation)

    def model(layers: Layers, x: jax.Array, key: jax.Array) -> Outputs:
        keys = jax.random.split(key, draws)
        drawn = jax.vmap(lambda k: draw(layers, x, k), out_axes=1)(keys)
        return {"logits": drawn, "posterior": posterior(layers)}

    return model


def negative_elbo(examples: int) -> Callable[[Outputs, jax.Array], jax.Array]:
    """The loss, for a training set of so many examples."""

    def loss(outputs: Outputs, y: jax.Array) -> jax.Array:
        shape = outputs["logits"].shape[:2]
        fit = softmax_cross_entropy(
            outputs["logits"], jnp.broadcast_to(y[:, None], shape)
        )
        return fit + divergence(outputs["posterior"]) / examples

    return loss


def log_probabilities(
    draw: Callable[[jax.Array], jax.Array], key: jax.Array, draws: int = DRAWS
) -> jax.Array:
    """Of the classes, of several ``draw(key)``, shape=(draws, examples, classes)."""
    keys = jax.random.split(key, draws)
    return jax.lax.map(lambda noise: jax.nn.log_softmax(draw(noise)), keys)


def average(log_probabilities: jax.Array) -> jax.Array:
    """Logarithm of the mean probability over draws, the first axis."""
    draws = len(log_probabilities)
    return jax.nn.logsumexp(log_probabilities, axis=0) - math.log(draws)


def predictor(activation: Activation) -> Callable[[Layers, jax.Array, Batch], Outputs]:
    """Class probabilities averaged over draws, as the logits of a single one.

    There is no posterior among these outputs, so their loss has no divergence: it is
    the negative logarithm of the predictive probability of the true class.
    """

    def predict(layers: Layers, x: jax.Array, context: Batch) -> Outputs:
        draw = partial(logits, layers, x, activation=activation)
        drawn = log_probabilities(draw, context["key"])
        return {"logits": average(drawn)[:, None], "posterior": []}

    return predict


def classes_right(outputs: Outputs, y: jax.Array) -> jax.Array:
    return accuracy(outputs["logits"].mean(axis=1), y)
