"""Writes the networks of the zoo as ONNX files for the page in this folder.

From the root of the repository, after the commands that ``python -m benchmarks zoo``
shows:

    python -m docs.examples.lens.export zoo

Every file is compared with JAX on held-out images before it is kept. ``models.json``
says what the page needs to know, with the accuracy of every file.
"""

import argparse
import hashlib
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime

from benchmarks import datasets, zoo
from benchmarks.commands import options
from benchmarks.reports import records
from benchmarks.scenarios import SCENARIOS
from benchmarks.scenarios._mobilenet import from_torch
from benchmarks.scenarios.mobilenet_last_layer import SIZE
from benchmarks.zoo.checkpoint import CARD
from docs.examples.lens import graph

FOLDER = pathlib.Path(__file__).with_name("models")
WEIGHTS: tuple[graph.Weights, ...] = ("float32", "half", "int8")  # see `Graph`
SERVED: graph.Weights = "half"  # what the page loads
PARITY = 100  # held-out images on which logits are compared
TOLERANCE = 1e-4  # of a logit with float32 weights, absolute and relative
POINTS = {"half": 0.01, "int8": 0.01}  # of accuracy that smaller weights may cost
CIFAR10 = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship",
    "truck",
)  # fmt: skip
NAMES = {
    "hessian_free": "Newton-CG",
    "stochastic_hessian_free": "Newton-CG, mini-batches",
    "adam": "Adam",
    "sgd": "SGD",
}
Params = Any
Cards = dict[str, dict[str, Any]]


class Held(NamedTuple):
    """Held-out images as bytes, their labels, and what JAX makes of them."""

    images: np.ndarray  # (n, height, width, channels)
    labels: np.ndarray
    logits: dict[str, np.ndarray]  # by optimizer


class Network(NamedTuple):
    """A graph that the page can load, with one head for each optimizer."""

    name: str
    title: str
    side: int  # height and width of the images that it was trained on
    classes: tuple[str, ...]
    weights: tuple[graph.Weights, ...]  # the files to write
    build: Callable[[graph.Weights], onnx.ModelProto]
    held: Held
    cards: Cards


class ParityError(Exception):
    """A file that computes something else than JAX."""


def logits(file: pathlib.Path, images: np.ndarray) -> dict[str, np.ndarray]:
    """What a file computes, by the name of its output; a hundred images at a time."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        file, options, providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    rows = range(0, len(images), 100)
    found = [session.run(names, {graph.INPUT: images[i : i + 100]}) for i in rows]
    columns = (np.concatenate(column) for column in zip(*found, strict=True))
    return dict(zip(names, columns, strict=True))


def compare(name: str, found: np.ndarray, held: Held) -> dict[str, float]:
    """A head of a file against JAX: accuracies, and the largest error of a logit."""
    expected = held.logits[name]
    classes, jax_classes = found.argmax(1), expected.argmax(1)
    return {
        "accuracy": float(np.mean(classes == held.labels)),
        "jax_accuracy": float(np.mean(jax_classes == held.labels)),
        "same_class": float(np.mean(classes == jax_classes)),
        "largest_error": float(np.abs(found - expected)[:PARITY].max()),
    }


def check(weights: graph.Weights, found: np.ndarray, name: str, held: Held) -> None:
    """Compares a head with JAX.

    Raises:
        ParityError: if its logits (float32) or its accuracy (smaller weights) differ.
    """
    expected, said = held.logits[name], compare(name, found, held)
    if weights != "float32":
        lost = said["jax_accuracy"] - said["accuracy"]
        if lost > POINTS[weights]:
            raise ParityError(f"{weights} weights cost {name} {lost:.1%} of accuracy.")
        return
    one, other = found[:PARITY], expected[:PARITY]
    if not np.allclose(one, other, rtol=TOLERANCE, atol=TOLERANCE):
        raise ParityError(f"{name}: a logit is off by {said['largest_error']:.1e}.")
    if (one.argmax(1) != other.argmax(1)).any():
        raise ParityError(f"{name}: JAX sees another class in an image.")


def write(network: Network, folder: pathlib.Path) -> dict[str, Any]:
    """Writes one file for each kind of weights, compared with JAX.

    Returns:
        What ``models.json`` says of the network.

    Raises:
        ParityError: if a file computes something else. It is removed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for weights in network.weights:
        path = folder / f"{network.name}-{weights}.onnx"
        path.write_bytes(network.build(weights).SerializeToString())
        found = logits(path, network.held.images)
        try:
            for name in network.cards:
                check(weights, found[name], name, network.held)
        except ParityError:
            path.unlink()
            raise
        content = path.read_bytes()
        files[weights] = {
            "file": path.name,
            "bytes": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
            "heads": {n: compare(n, found[n], network.held) for n in network.cards},
        }
    heads = [
        {
            "name": name,
            "title": NAMES.get(name, name),
            "accuracy": files[SERVED]["heads"][name]["accuracy"],
            "setting": card["setting"],
            "training_loss": card["loss"],
            "checkpoint": card["sha256"],
        }
        for name, card in network.cards.items()
    ]
    return {
        "name": network.name,
        "title": network.title,
        "side": network.side,
        "channels": network.held.images.shape[-1],
        "classes": network.classes,
        "held_out": len(network.held.labels),
        "served": SERVED,
        "files": files,
        "heads": heads,
    }


def checkpoints(directory: pathlib.Path, scenario: str) -> tuple[Params, Cards]:
    """All checkpoints of a scenario, the optimizers in the order of the zoo.

    Raises:
        FileNotFoundError: if there is none.
    """
    order = [e.optimizer for e in zoo.ENTRIES if e.scenario == scenario]
    found = {p.parent.name: p.parent for p in directory.glob(f"{scenario}/*/{CARD}")}
    if not found:
        raise FileNotFoundError(
            f"{directory} has no checkpoint of {scenario}: python -m benchmarks zoo "
            f"{directory}"
        )
    names = sorted(found, key=lambda n: (order.index(n) if n in order else 99, n))
    loaded = {name: zoo.load(found[name]) for name in names}
    params = {name: pair[0] for name, pair in loaded.items()}
    return params, {name: pair[1] for name, pair in loaded.items()}


def photographs(directory: pathlib.Path) -> Network:
    """MobileNetV2 with the last layers that were trained on CIFAR-10."""
    scenario = SCENARIOS["mobilenet_last_layer"]
    heads, cards = checkpoints(directory, scenario.name)
    images, _ = datasets.images.cifar10()
    features = scenario.load().held_out["x"]
    outputs = {n: np.asarray(scenario.model(p, features)) for n, p in heads.items()}
    variables = from_torch(datasets.weights.mobilenet_v2_weights())
    notes = _notes(cards)
    return Network(
        "photographs",
        "MobileNetV2, ten classes of CIFAR-10",
        images.test.shape[1],
        CIFAR10,
        WEIGHTS,
        lambda weights: graph.mobilenet(
            variables, heads, SIZE, weights, metadata=notes
        ),
        Held(images.test, images.test_labels.astype(int), outputs),
        cards,
    )


def digits(directory: pathlib.Path) -> Network:
    """The convolutional network that was trained on MNIST."""
    scenario = SCENARIOS["mnist_cnn"]
    networks, cards = checkpoints(directory, scenario.name)
    held = scenario.load().held_out
    outputs = {n: np.asarray(scenario.model(p, held["x"])) for n, p in networks.items()}
    images = np.round(255 * np.asarray(held["x"])).astype(np.uint8)
    notes = _notes(cards)
    return Network(
        "digits",
        "a small convolutional network, MNIST",
        images.shape[1],
        tuple("0123456789"),
        ("float32", "half"),  # it has no convolution that int8 is for
        lambda weights: graph.cnn(networks, weights, metadata=notes),
        Held(images, np.asarray(held["y"]), outputs),
        cards,
    )


def _notes(cards: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """The cards, short, for the file itself."""
    names = ("scenario", "data", "optimizer", "setting", "held_out_metric", "sha256")
    return {n: json.dumps({k: card[k] for k in names}) for n, card in cards.items()}


def export(networks: list[Network], folder: pathlib.Path) -> dict[str, Any]:
    """Writes all files and ``models.json``."""
    described = [write(network, folder) for network in networks]
    manifest = {"networks": described, "versions": records.versions()}
    (folder / "models.json").write_text(json.dumps(manifest, indent=1) + "\n")
    return manifest


def main() -> None:
    """Exports a zoo and prints how every file compares with JAX."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "zoo", nargs="?", type=pathlib.Path, default="zoo",
        help="where `benchmarks train` wrote (default: zoo)",
    )  # fmt: skip
    parser.add_argument(
        "--output", type=pathlib.Path, default=FOLDER, metavar="DIR",
        help="where the files go (default: models, beside the page)",
    )  # fmt: skip
    arguments = parser.parse_args()
    directory = arguments.zoo
    try:
        options.check_output(arguments.output)
        made = export([photographs(directory), digits(directory)], arguments.output)
    except (options.UsageError, ParityError, *options.UNAVAILABLE) as error:
        raise SystemExit(f"Error: {error}") from None
    for network in made["networks"]:
        for weights, file in network["files"].items():
            for name, said in file["heads"].items():
                print(
                    f"{network['name']} {weights} {file['bytes'] / 1e6:.2f} MB {name}: "
                    f"accuracy {said['accuracy']:.2%} (JAX {said['jax_accuracy']:.2%}),"
                    f" same class in {said['same_class']:.2%}, largest error of a "
                    f"logit {said['largest_error']:.1e}"
                )


if __name__ == "__main__":
    main()
