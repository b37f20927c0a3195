"""MNIST by a network with a Gaussian over every weight: Bayes by backprop."""

from functools import partial

import jax

from benchmarks.scenarios import _bayesian as bayesian
from benchmarks.scenarios import mnist
from benchmarks.scenarios._base import PosterSettings

EXAMPLES = 60_000  # of training, which share the divergence from the prior

SCENARIO = mnist.CLASSIFIER._replace(
    name="mnist_bayesian",
    description="MNIST classification, Bayesian 784-1024-10 relu network, "
    "negative ELBO",
    init=partial(bayesian.init_mean_field, (784, 1024, 10)),
    model=bayesian.classifier(jax.nn.relu),
    loss=bayesian.negative_elbo(EXAMPLES),
    metric=bayesian.classes_right,
    budget=4.0,
    batch_sizes=(128, 512),
    registration=None,
    random=True,
    predict=bayesian.predictor(jax.nn.relu),
    poster=PosterSettings(learning_rate=0.03, damping=1e5, batch=128),
)
