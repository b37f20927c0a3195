"""MobileNetV2 with batch normalisation, on CIFAR-10 and on ImageNet."""

from benchmarks.scenarios._base import PosterSettings
from benchmarks.scenarios._batch_norm import Network
from benchmarks.scenarios._images import cifar10, classification, imagenet
from benchmarks.scenarios._mobilenet import MobileNetV2

# The poster: a learning rate of 0.001 that decays, damping 0.01, batches of 64.
POSTER = PosterSettings(learning_rate=1e-3, damping=0.01, batch=64)

SCENARIO = classification(
    "mobilenet",
    "CIFAR-10 (10,000 images), MobileNetV2 with batch normalisation, cross-entropy",
    Network(MobileNetV2(10), (32, 32, 3)),
    cifar10,
)._replace(budget=6.0, poster=POSTER)
IMAGENET = classification(
    "mobilenet_imagenet",
    "ImageNet (20 images a class), MobileNetV2 with batch normalisation, cross-entropy",
    Network(MobileNetV2(1000), (224, 224, 3)),
    imagenet,
)._replace(budget=20.0, poster=POSTER)
