"""The deep autoencoders of the Hessian-free literature, on MNIST."""

from benchmarks import datasets
from benchmarks.scenarios import _networks as networks
from benchmarks.scenarios._base import Dataset, Scenario, split


def _load(images: int) -> Dataset:
    """The first training images, and as many test images: targets are the inputs."""
    mnist = datasets.images.mnist()
    train, test = (
        part[:images].reshape(-1, 784) / 255.0 for part in (mnist.train, mnist.test)
    )
    return split(train, train, test, test)


def _scenario(name: str, images: int, *sizes: int, **settings: float) -> Scenario:
    encoder = "-".join(map(str, sizes))
    return Scenario(
        name=name,
        description=f"MNIST autoencoder, {encoder}-..., {images:,} images, "
        "cross-entropy",
        load=lambda: _load(images),
        init=networks.initialiser(*sizes, *sizes[-2::-1]),
        model=networks.autoencoder,
        loss=networks.pixel_cross_entropy,
        metric=networks.squared_error_of_logits,
        metric_name="squared error",
        registration=("sigmoid_cross_entropy", 1.0),
        **settings,
    )


SMALL = _scenario(
    "mnist_autoencoder_small", 1_000, 784, 200, 100, 50, 20, budget=1000.0, seeds=3
)
SCENARIO = _scenario(
    "mnist_autoencoder", 10_000, 784, 1000, 500, 250, 30, budget=300.0, seeds=1
)
FULL = _scenario(
    "mnist_autoencoder_full", 60_000, 784, 1000, 500, 250, 30, budget=20.0, seeds=1
)._replace(batch_sizes=(200,), full_batch=False, curve_examples=10_000)
