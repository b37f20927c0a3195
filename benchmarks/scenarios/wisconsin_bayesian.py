"""Wisconsin breast cancer by a Bayesian network: how sure is it of each tumour?"""

import pathlib
from functools import partial

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from benchmarks.reports.figures import open_frame, save
from benchmarks.scenarios import _bayesian as bayesian
from benchmarks.scenarios import wisconsin
from benchmarks.scenarios._base import Dataset, PosterSettings

EXAMPLES = 455  # of training, which share the divergence from the prior
MALIGNANT, BENIGN = 0, 1
COLOURS = {MALIGNANT: "#D55E00", BENIGN: "#0072B2"}
NAMES = {MALIGNANT: "malignant", BENIGN: "benign"}
# In a step. All examples are in every step, so nothing else averages the noise, and a
# Newton step fits what is left of it: with one draw the loss stalls at 0.4 nats.
TRAINING_DRAWS = 32
EXAMINED_DRAWS = 200
BINS = 10


def entropy(probabilities: np.ndarray) -> np.ndarray:
    """Of each distribution over the classes, the last axis, in nats."""
    return -np.sum(probabilities * np.log(np.maximum(probabilities, 1e-30)), axis=-1)


def calibration_bins(confidence: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Share of the examples, mean confidence, accuracy: a row for each bin in use."""
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    members = [bins == index for index in np.unique(bins)]
    return np.array(
        [[m.mean(), confidence[m].mean(), right[m].mean()] for m in members]
    )


def expected_calibration_error(confidence: np.ndarray, right: np.ndarray) -> float:
    """Mean distance of confidence and accuracy over the bins (Guo et al. 2017)."""
    share, confidence, accuracy = calibration_bins(confidence, right).T
    return float(np.sum(share * np.abs(confidence - accuracy)))


def examine(
    params: bayesian.Layers, data: Dataset, stem: pathlib.Path
) -> dict[str, float]:
    """Draws the prediction for each held-out tumour, and the calibration."""
    x, y = data.held_out["x"], np.asarray(data.held_out["y"])
    draw = partial(bayesian.logits, params, x, activation=jnp.tanh)
    drawn = bayesian.log_probabilities(draw, jax.random.key(0), EXAMINED_DRAWS)
    log_mean = np.asarray(bayesian.average(drawn))
    mean = np.exp(log_mean)
    right = mean.argmax(axis=-1) == y
    doubt = entropy(mean)
    draw_tumours(np.exp(np.asarray(drawn))[..., MALIGNANT], y, f"{stem}_tumours.png")
    draw_doubt(mean.max(axis=-1), doubt, right, f"{stem}_uncertainty.png")
    scores = {
        "predictive log-likelihood": log_mean[np.arange(len(y)), y].mean(),
        "expected calibration error": expected_calibration_error(
            mean.max(axis=-1), right
        ),
    }
    # Where nobody errs there is no entropy of errors.
    for name, chosen in {"right": right, "wrong": ~right}.items():
        if chosen.any():
            scores[f"mean predictive entropy where {name}"] = doubt[chosen].mean()
    return {name: float(value) for name, value in scores.items()}


def draw_tumours(malignant: np.ndarray, y: np.ndarray, path: str) -> None:
    """The probability of cancer, tumours in its order, with its spread over draws."""
    order = malignant.mean(axis=0).argsort()
    malignant, y, places = malignant[:, order], y[order], np.arange(len(order))
    low, high = np.quantile(malignant, (0.05, 0.95), axis=0)
    figure, axes = plt.subplots(figsize=(9, 4.5), layout="tight")
    for kind in (MALIGNANT, BENIGN):
        chosen, style = y == kind, {"color": COLOURS[kind]}
        x = places[chosen]
        axes.vlines(x, low[chosen], high[chosen], alpha=0.35, **style)
        style |= {"label": f"{NAMES[kind]} in truth", "zorder": 2}
        axes.scatter(x, malignant.mean(axis=0)[chosen], s=14, **style)
    axes.axhline(0.5, color="#888888", linewidth=0.8, linestyle=":")
    axes.set(
        title="How likely each held-out tumour is malignant",
        xlabel="held-out tumours, from the least to the most suspect",
        ylabel="predictive probability; lines: 5 to 95 % of draws",
        xlim=(-1, len(y)),
        ylim=(-0.02, 1.02),
    )
    axes.legend(frameon=False, loc="upper left")
    open_frame(axes)
    save(figure, path, dpi=150)


def draw_doubt(
    confidence: np.ndarray, doubt: np.ndarray, right: np.ndarray, path: str
) -> None:
    """Accuracy against confidence, and errors left once the doubtful are set aside."""
    figure, (left, other) = plt.subplots(1, 2, figsize=(9, 4.3), layout="tight")
    share, mean, accuracy = calibration_bins(confidence, right).T
    left.plot([0.5, 1], [0.5, 1], color="#888888", linewidth=0.8, linestyle=":")
    left.scatter(mean, accuracy, s=20 + 400 * share, color="#0072B2", alpha=0.7)
    style = {"textcoords": "offset points", "ha": "center", "size": 8}
    for x, height, part in zip(mean, accuracy, share, strict=True):
        offset = 0, -22 if height > 0.9 else 10
        count = f"{round(part * len(right))}"
        left.annotate(count, (x, height), xytext=offset, **style)
    left.set(
        title="Reliability, with numbers of tumours",
        xlabel="confidence: probability of the predicted class",
        ylabel="share that is right",
        xlim=(0.47, 1.03),
        ylim=(-0.05, 1.08),
    )
    errors = np.cumsum(~right[doubt.argsort()]) / np.arange(1, len(right) + 1)
    other.plot(np.arange(1, len(right) + 1) / len(right), errors, color="#D55E00")
    other.set(
        title="Errors among the tumours it is surest of",
        xlabel="share of the tumours, by predictive entropy",
        ylabel="share that is wrong",
        xlim=(0, 1),
        ylim=(0, max(1.1 * errors.max(), 0.01)),
    )
    for axes in (left, other):
        open_frame(axes)
    save(figure, path, dpi=150)


SCENARIO = wisconsin.SCENARIO._replace(
    name="wisconsin_bayesian",
    description="Wisconsin breast cancer, Bayesian 30-32-2 network, negative ELBO",
    init=partial(bayesian.init_mean_field, (30, 32, 2)),
    model=bayesian.classifier(jnp.tanh, TRAINING_DRAWS),
    loss=bayesian.negative_elbo(EXAMPLES),
    metric=bayesian.classes_right,
    budget=500.0,
    batch_sizes=(128, 32),
    random=True,
    predict=bayesian.predictor(jnp.tanh),
    examine=examine,
    poster=PosterSettings(learning_rate=0.03, damping=1e5, batch=128),
)
