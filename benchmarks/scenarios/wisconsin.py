"""Wisconsin breast cancer: is a tumour benign? 569 women, 30 measurements."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from benchmarks.scenarios._base import Dataset, Scenario, dataset, standardise
from benchmarks.scenarios._networks import Layers, dense, initialiser

L2 = 1e-4


def load() -> Dataset:
    from sklearn.datasets import load_breast_cancer

    return standardise(dataset(*load_breast_cancer(return_X_y=True)))


def model(params: Layers, x: jax.Array) -> dict[str, Any]:
    # The penalty is part of the convex loss, so what it penalises is an output: this
    # way the Gauss-Newton matrix holds its curvature exactly.
    return {"logits": dense(params, x)[:, 0], "weights": params}


def loss(outputs: dict[str, Any], y: jax.Array) -> jax.Array:
    fit = optax.sigmoid_binary_cross_entropy(outputs["logits"], y).mean()
    return fit + 0.5 * L2 * optax.tree.norm(outputs["weights"], squared=True)


def accuracy(outputs: dict[str, Any], y: jax.Array) -> jax.Array:
    return jnp.mean((outputs["logits"] > 0) == (y > 0))


SCENARIO = Scenario(
    name="wisconsin",
    description="Wisconsin breast cancer, 30-32-1 network, cross-entropy + L2",
    load=load,
    init=initialiser(30, 32, 1),
    model=model,
    loss=loss,
    metric=accuracy,
    metric_name="accuracy",
)
