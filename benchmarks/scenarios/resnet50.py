"""ResNet-50 with batch normalisation, on CIFAR-10 and on ImageNet."""

from benchmarks.scenarios._base import PosterSettings
from benchmarks.scenarios._batch_norm import Network
from benchmarks.scenarios._images import cifar10, classification, imagenet
from benchmarks.scenarios._resnet import ResNet50

# The poster trains with its defaults, a learning rate of 0.01 and batches of 64.
POSTER = PosterSettings(learning_rate=0.01, damping=1e-5, batch=64)

SCENARIO = classification(
    "resnet50",
    "CIFAR-10 (10,000 images), ResNet-50 with batch normalisation, cross-entropy",
    Network(ResNet50(10), (32, 32, 3)),
    cifar10,
)._replace(budget=3.0, poster=POSTER)
# A step of `hessian_free` on the full network was still compiling after two minutes of
# a CPU; on this one that takes about four, and then six seconds a step.
NARROW = classification(
    "resnet50_narrow",
    "CIFAR-10 (10,000 images), ResNet-50 of a quarter of the width, batch "
    "normalisation, cross-entropy",
    Network(ResNet50(10, width=16), (32, 32, 3)),
    cifar10,
)._replace(budget=10.0, poster=POSTER)
IMAGENET = classification(
    "resnet50_imagenet",
    "ImageNet (20 images a class), ResNet-50 with batch normalisation, cross-entropy",
    Network(ResNet50(1000), (224, 224, 3)),
    imagenet,
)._replace(budget=20.0, poster=POSTER)
