"""A variational autoencoder of MNIST's digits (Kingma and Welling 2014)."""

import pathlib

import jax
import jax.numpy as jnp
import matplotlib.patheffects as effects
import matplotlib.pyplot as plt
import numpy as np

from benchmarks import datasets
from benchmarks.reports.figures import open_frame, save
from benchmarks.scenarios import mnist_autoencoder
from benchmarks.scenarios._base import Batch, Dataset, Params, PosterSettings
from benchmarks.scenarios._networks import dense, init_dense, pixel_cross_entropy

PIXELS, HIDDEN, LATENT = 784, 64, 2
DRAWS = 5  # of the noise, that the held-out loss is averaged over
BOUND_DRAWS = 64  # that the tighter bound on the log-likelihood is taken of
BOUND_EXAMPLES = 1_000

Outputs = dict[str, jax.Array]


def init(seed: int) -> Params:
    """Encoder 784-64-(2 means, 2 log-variances), decoder 2-64-784."""
    return {
        "encoder": init_dense((PIXELS, HIDDEN, 2 * LATENT), seed, gain=2.0),
        # Another seed, far from those of the runs: weights of its own.
        "decoder": init_dense((LATENT, HIDDEN, PIXELS), seed + 1_000, gain=2.0),
    }


def encode(params: Params, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and standard deviation of each image's place in the latent plane."""
    code = dense(params["encoder"], x, activation=jax.nn.relu)
    mean, log_variance = jnp.split(code, 2, axis=-1)
    return mean, jnp.exp(0.5 * log_variance)


def decode(params: Params, z: jax.Array) -> jax.Array:
    """Logits of the pixels."""
    return dense(params["decoder"], z, activation=jax.nn.relu)


def model(params: Params, x: jax.Array, key: jax.Array) -> Outputs:
    """Logits after one draw of the noise, and what the divergence is a function of."""
    mean, deviation = encode(params, x)
    z = mean + deviation * jax.random.normal(key, mean.shape)
    return {"logits": decode(params, z), "mean": mean, "deviation": deviation}


def divergence(mean: jax.Array, deviation: jax.Array) -> jax.Array:
    """KL divergence of each Gaussian from the standard normal one, in nats.

    It is convex in the log-variances as well, but has next to no curvature where they
    are small; in the deviations it has, so these are the outputs.
    """
    terms = 0.5 * (mean**2 + deviation**2 - 1) - jnp.log(deviation)
    return terms.sum(axis=-1)


def loss(outputs: Outputs, y: jax.Array) -> jax.Array:
    """The negative evidence lower bound of an image, in nats."""
    kl = divergence(outputs["mean"], outputs["deviation"]).mean()
    return reconstruction(outputs, y) + kl


def reconstruction(outputs: Outputs, y: jax.Array) -> jax.Array:
    """Its first part: the cross-entropy of the pixels, several draws or one."""
    return pixel_cross_entropy(outputs["logits"], y)


def predict(params: Params, x: jax.Array, context: Batch) -> Outputs:
    """The outputs with several draws of the logits, along an axis in front."""
    keys = jax.random.split(context["key"], DRAWS)
    outputs = jax.vmap(model, in_axes=(None, None, 0))(params, x, keys)
    mean, deviation = encode(params, x)
    return {"logits": outputs["logits"], "mean": mean, "deviation": deviation}


def log_likelihood(
    params: Params, x: jax.Array, key: jax.Array, draws: int
) -> jax.Array:
    """A bound on log p(x) of each image that gets tight with the number of draws.

    The importance-weighted bound of Burda, Grosse and Salakhutdinov (2016): with one
    draw its mean is the evidence lower bound.
    """
    mean, deviation = encode(params, x)

    def log_weight(key: jax.Array) -> jax.Array:
        noise = jax.random.normal(key, mean.shape)
        z = mean + deviation * noise
        log_prior = -0.5 * (z**2).sum(-1)  # both without the constant, which cancels
        log_posterior = -(0.5 * noise**2 + jnp.log(deviation)).sum(-1)
        logits = decode(params, z)
        pixels = x * jax.nn.log_sigmoid(logits) + (1 - x) * jax.nn.log_sigmoid(-logits)
        return pixels.sum(-1) + log_prior - log_posterior

    weights = jax.lax.map(log_weight, jax.random.split(key, draws))
    return jax.nn.logsumexp(weights, axis=0) - jnp.log(draws)


def examine(params: Params, data: Dataset, stem: pathlib.Path) -> dict[str, float]:
    """Draws reconstructions, samples and the latent plane; bounds the likelihood."""
    x = data.held_out["x"]
    draw_images(params, x, pathlib.Path(f"{stem}_images.png"))
    labels = datasets.images.mnist().test_labels[: len(x)]
    draw_latent_plane(params, x, labels, pathlib.Path(f"{stem}_latent.png"))
    bound = jax.jit(log_likelihood, static_argnames="draws")(
        params, x[:BOUND_EXAMPLES], jax.random.key(0), draws=BOUND_DRAWS
    )
    return {f"log-likelihood, bound by {BOUND_DRAWS} draws": float(bound.mean())}


def tile(images: np.ndarray, rows: int) -> np.ndarray:
    """Images of 28x28 pixels, row by row, as one."""
    grid = images.reshape(rows, -1, 28, 28)
    return grid.transpose(0, 2, 1, 3).reshape(rows * 28, -1)


def draw_images(params: Params, x: jax.Array, path: pathlib.Path) -> None:
    """Held-out digits above what becomes of them, and the plane decoded on a grid."""
    count, side = min(12, len(x)), 15
    originals = x[:: len(x) // count][:count]
    decoded = jax.nn.sigmoid(decode(params, encode(params, originals)[0]))
    # Quantiles of the prior: each image stands for the same share of it.
    quantiles = np.array(jax.scipy.stats.norm.ppf((jnp.arange(side) + 0.5) / side))
    quantiles[side // 2] = 0.0  # which rounding makes negative
    plane = jnp.stack(jnp.meshgrid(quantiles, quantiles[::-1]), axis=-1)
    samples = jax.nn.sigmoid(decode(params, plane.reshape(-1, LATENT)))

    figure, axes = plt.subplots(
        2, 1, figsize=(7, 8.6), height_ratios=(2 * side / count, side), layout="tight"
    )
    pairs = tile(np.concatenate([originals, decoded]), rows=2)
    axes[0].imshow(pairs, cmap="gray_r", vmin=0, vmax=1)
    axes[0].set_title("Held-out digits (above) and their reconstructions")
    axes[0].axis("off")
    axes[1].imshow(tile(np.asarray(samples), side), cmap="gray_r", vmin=0, vmax=1)
    axes[1].set_title("Decoded from a grid of the latent plane, quantiles of the prior")
    middles = (np.arange(side) + 0.5) * 28 - 0.5
    shown = slice(0, side, side // 2)
    axes[1].set_xticks(middles[shown], [f"{q:.1f}" for q in quantiles[shown]])
    axes[1].set_yticks(middles[shown], [f"{q:.1f}" for q in quantiles[::-1][shown]])
    axes[1].set(xlabel="first latent variable", ylabel="second latent variable")
    save(figure, path, dpi=150)


def draw_latent_plane(
    params: Params, x: jax.Array, labels: np.ndarray, path: pathlib.Path
) -> None:
    """Where the encoder puts held-out digits, coloured and named by class."""
    means = np.asarray(encode(params, x)[0])
    figure, axes = plt.subplots(figsize=(7, 7), layout="tight")
    colours = plt.get_cmap("tab10")
    axes.scatter(*means.T, s=3, c=colours(labels), alpha=0.5, linewidths=0)
    for digit in np.unique(labels):
        place = np.median(means[labels == digit], axis=0)
        outline = effects.withStroke(linewidth=4, foreground="white")
        style = {"size": 20, "weight": "bold", "ha": "center", "va": "center"}
        style |= {"color": colours(digit), "path_effects": [outline]}
        axes.text(*place, str(digit), **style)
    first, second = (f"{name} latent variable, mean" for name in ("first", "second"))
    axes.set(xlabel=first, ylabel=second)
    axes.set(title=f"{len(x):,} held-out digits in the latent plane", aspect="equal")
    open_frame(axes)
    save(figure, path, dpi=150)


SCENARIO = mnist_autoencoder.FULL._replace(
    name="mnist_vae",
    description="MNIST variational autoencoder, 784-64-2-64-784 relu network, "
    "negative ELBO",
    init=init,
    model=model,
    loss=loss,
    metric=reconstruction,
    metric_name="reconstruction cross-entropy",
    seeds=3,
    batch_sizes=(32, 256),
    registration=None,
    random=True,
    predict=predict,
    examine=examine,
    poster=PosterSettings(learning_rate=0.01, damping=1e-5, batch=32),
)
