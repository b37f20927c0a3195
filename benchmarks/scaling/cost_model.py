r"""How long a data-parallel step takes on machines that we do not have.

.. math::
  T(n) = \frac{\text{compute}}{n} + \text{overhead}
         + \sum_{\text{collectives}} t(\text{bytes}, n) + \text{rest}

- *compute*: gradient and curvature products, each device its share of the examples.
- *overhead*: what a pass takes however few its examples are (launching kernels, filling
  the processor). It is why small shares run at a lower rate: a pass over :math:`b`
  examples takes :math:`b/\text{rate} + \text{overhead}`.
- *collectives*: all-reduces of the gradient, each product, and a number for each trial
  value; those of the preconditioner. Nothing is assumed to overlap with computing.
- *rest*: vectors of the solver, and a device's share of the preconditioner's matrices.

The numbers of the machine are published ones, see `SOURCES`; memory bandwidth and peak
rates are those of its data sheet. What is assumed says so. None of this was measured by
us.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

# Address, and what was taken from there.
SOURCES = {
    "https://github.com/NVIDIA/DeepLearningExamples/blob/"
    "134510b4b7ff6225a76805b809e414fec3163071/MxNet/Classification/RN50v1.5/README.md":
    "rates of ResNet-50 in training and by batch size, its weak scaling with SGD",
    "https://github.com/NVIDIA/nccl/blob/"
    "01afd20a77b5804e0ecf1042509dd9d20ebf9e93/src/graph/tuning.cc":
    "latencies of hops and limits of bandwidths, of NCCL's own model",
    "https://github.com/NVIDIA/nccl/issues/1048":
    "all-reduce at 232.5 GB/s on eight A100, at 86 of 100 GB/s over two nodes",
    "https://github.com/NVIDIA/nccl-tests/issues/119":
    "all-reduce at 84.8 of 100 GB/s on average over three nodes",
    "https://github.com/NVIDIA/nccl/issues/652":
    "latency of 63 microseconds on 256 A100, to compare the model with",
    "https://www.nvidia.com/de-de/data-center/nvlink/":
    "NVLink of the A100: 600 GB/s, 300 each way",
    "https://developer.nvidia.com/blog/defining-ai-innovation-with-dgx-a100":
    "the DGX A100: eight ports of 200 Gb/s for eight devices",
    "https://github.com/flagos-ai/FlagGems/pull/5586":
    "QR decompositions by cuSOLVER: 0.20, 0.75, 1.8, 4.4 and 31 ms for sides of 64, "
    "256, 512, 1024 and 4096",
    "https://github.com/ml-explore/mlx/pull/975":
    "QR decomposition of side 2000 on an A100: 6.3 ms, to compare the model with",
}  # fmt: skip


class Algorithm(NamedTuple):
    """One way to reduce over all devices."""

    name: str  # of the algorithm and its protocol
    # a ring through all devices, or chains in the nodes and a tree over them
    shape: Literal["ring", "tree"]
    base: float  # seconds that every call takes
    inside: float  # seconds a hop in a node
    between: float  # seconds a hop between nodes
    node_bandwidth: float  # bytes a second of a device with all devices in one node
    network_bandwidth: float  # the same over several nodes
    network_latency: float = 1.0  # by which hops take longer over several nodes


class Network(NamedTuple):
    """How devices are connected."""

    per_node: int  # devices in a node
    algorithms: tuple[Algorithm, ...]  # of which the fastest is taken, as NCCL does


class Transfer(NamedTuple):
    """Seconds of one all-reduce, the two parts of them."""

    latency: float
    bandwidth: float

    @property
    def seconds(self) -> float:
        """Both."""
        return self.latency + self.bandwidth


def all_reduce(
    size: float, devices: int, network: Network, rounds: int = 2
) -> Transfer:
    """Seconds to average an array of so many bytes over all devices.

    A ring sends 2 (n - 1)/n of the array over every link, in 2 (n - 1) hops. A tree
    sends it up and down, in as many hops as it is high. An all-gather has one round of
    a ring; NCCL has no tree for it.
    """
    if devices < 1:
        raise ValueError(f"devices must be a positive number, got {devices}.")
    if devices == 1:
        return Transfer(0.0, 0.0)
    known = (a for a in network.algorithms if rounds == 2 or a.shape == "ring")
    transfers = (_transfer(size, devices, network, a, rounds) for a in known)
    return min(transfers, key=lambda transfer: transfer.seconds)


def _transfer(
    size: float, devices: int, network: Network, a: Algorithm, rounds: int
) -> Transfer:
    nodes = math.ceil(devices / network.per_node)
    bandwidth = a.node_bandwidth if nodes == 1 else a.network_bandwidth
    if a.shape == "ring":
        hops = rounds * ((devices - nodes) * a.inside + (nodes - 1) * a.between)
        sent = rounds * (devices - 1) / devices * size
    else:
        chain = min(devices, network.per_node) - 1
        hops = 2 * (chain * a.inside + math.log2(nodes) * a.between)
        sent = 2 * size
    factor = 1.0 if nodes == 1 else a.network_latency
    return Transfer(factor * (a.base + hops), sent / bandwidth)


# NCCL's own constants for the A100 and NVLink (tuning.cc). Bandwidths of rings are
# those measured: in a node 232.5 GB/s, over nodes 85 % of eight ports of 25 GB/s.
# Trees reach less: NCCL's limits. Rings with large arrays take 1.9 times their latency
# over several nodes, LL takes 1.8 times as long for hops inside a node.
_NODE, _NETWORK = 232.5e9, 0.85 * 8 * 25e9
DGX_A100 = Network(
    per_node=8,
    algorithms=(
        Algorithm("ring, simple", "ring", 8.4e-6, 3.4e-6, 9.6e-6, _NODE, _NETWORK, 1.9),
        Algorithm("ring, LL", "ring", 3.6e-6, 0.85e-6, 2.7e-6, _NODE / 4, _NETWORK / 4),
        Algorithm("tree, LL128", "tree", 4.4e-6, 1.2e-6, 8.5e-6, 101e9, 96e9),
        Algorithm("tree, LL", "tree", 4.4e-6, 0.94e-6, 5e-6, 29e9, 21e9),
    ),
)


class Processor(NamedTuple):
    """What one device does, for one network."""

    gradient_rate: float  # examples a second of a gradient, with large batches
    product_rate: float  # the same at the precision of curvature products
    overhead: float  # seconds that a gradient takes beside its examples
    memory_bandwidth: float  # bytes a second
    matrix_flops: float  # operations a second in products of matrices
    column: float  # seconds a column of a QR decomposition, beside its operations
    launch: float  # seconds that a product of matrices takes at least


# Images a second of ResNet-50 by the batch size: a forward pass on one A100 in TF32,
# MXNet 20.12 (the table's rate in mixed precision over its speed-up).
FORWARD_TF32 = {
    1: 463 / 1.72, 2: 880 / 1.62, 4: 1668 / 1.76, 8: 2522 / 1.75, 16: 3704 / 1.90,
    32: 2964 / 1.51, 64: 4547 / 1.80, 128: 5530 / 1.94, 192: 6198 / 2.19,
    256: 6120 / 2.19,
}  # fmt: skip
GRADIENT_TF32 = 1022.0  # images a second of training on one A100, same source
PUBLISHED_WEAK_SCALING = 7.82 / 8  # of SGD on eight of them, same source
FLOAT32_V100 = 417.0  # images a second of training, same source
FLOAT32_RATIO = 19.5 / 15.7  # peak rates in float32 without tensor cores, A100 to V100


def _fit(rows: Sequence[tuple[float, float]]) -> list[float]:
    """The x and y for which ``a x + b y`` is closest to 1 for all rows (a, b)."""
    return np.linalg.lstsq(np.array(rows), np.ones(len(rows)))[0].tolist()


def fit_overhead(rates: dict[int, float]) -> tuple[float, float]:
    """Seconds a pass takes beside its examples, and its rate with many of them.

    Fits ``seconds = overhead + examples / rate`` by least squares of the relative
    error, to rates in examples a second by the number of examples in a pass.
    """
    overhead, per_example = _fit([(rate / n, rate) for n, rate in rates.items()])
    return overhead, 1 / per_example


# Assumption: a gradient launches three times the kernels of a forward pass. MXNet's
# input pipeline is in these numbers, so a program compiled by XLA should do better.
A100_RESNET50 = Processor(
    gradient_rate=GRADIENT_TF32,
    # Curvature products run in full float32. There is no published rate for the A100.
    product_rate=FLOAT32_V100 * FLOAT32_RATIO,
    overhead=3 * fit_overhead(FORWARD_TF32)[0],
    memory_bandwidth=1.555e12,
    matrix_flops=0.7 * 19.5e12,  # assumption: 70 % of the peak in float32
    # Assumption, from the times of `SOURCES`: columns are found one after the other.
    column=4e-6,
    launch=5e-6,  # assumption
)


class Pass(NamedTuple):
    """Something that goes over examples, forward or back."""

    count: float  # how often a step does it
    cost: float  # in gradients on as many examples
    fraction: float = 1.0  # of the batch that it sees
    at_least: int = 1  # so many examples of all devices, if the batch has them
    precise: bool = False  # whether in full float32


class Matrices(NamedTuple):
    """What a device does for the matrices of a preconditioner in a step."""

    flops: float = 0  # operations
    columns: float = 0  # of QR decompositions
    launches: float = 0  # of products of matrices
    numbers: float = 0  # that it reads or writes
    # collectives: how many, and of how many numbers
    gathered: tuple[tuple[float, float], ...] = ()
    reduced: tuple[tuple[float, float], ...] = ()


class Recipe(NamedTuple):
    """What a step of an optimizer does."""

    name: str  # of the optimizer and its settings
    passes: tuple[Pass, ...]  # over the examples, the gradient among them
    # all-reduces of a vector like the parameters, beside the gradient's
    products: float = 0
    numbers: float = 0  # all-reduces of one number
    product_bytes: int = 4  # of one number in those of products
    sweeps: float = 10  # how often a step reads or writes a vector like the parameters
    # work of the preconditioner for a number of devices
    matrices: Callable[[int], Matrices] = lambda devices: Matrices()


class Breakdown(NamedTuple):
    """Seconds of a step, part by part."""

    compute: float  # of examples
    overhead: float  # of passes, however few examples they have
    bandwidth: float  # of collectives, by their bytes
    latency: float  # of collectives, by their hops
    vectors: float  # of the solver and the update
    preconditioner: float  # of its matrices

    @property
    def seconds(self) -> float:
        """Of the step."""
        return sum(self)

    @property
    def limit(self) -> str:
        """The largest part besides computing, which is divided among the devices."""
        return max(self._fields[1:], key=lambda name: getattr(self, name))

    @property
    def communication(self) -> float:
        """Seconds of collectives."""
        return self.bandwidth + self.latency


def rows_on_a_device(part: Pass, batch: int, devices: int) -> float:
    """How many examples of a batch one device sees in a pass.

    Every k-th example is taken, as ``ncg_optax.sampling`` does.
    """
    if batch % devices:
        raise ValueError(f"devices must divide the batch of {batch}, got {devices}.")
    k = min(round(1 / part.fraction), batch // part.at_least, batch // devices)
    return batch / max(1, k) / devices


def step(
    recipe: Recipe,
    weights: int,
    batch: int,
    devices: int,
    processor: Processor = A100_RESNET50,
    network: Network = DGX_A100,
) -> Breakdown:
    """Predicts a step with a number of float32 weights and a batch for all devices.

    Raises:
        ValueError: if the examples cannot be divided equally.
    """
    compute = overhead = 0.0
    for part in recipe.passes:
        rate = processor.product_rate if part.precise else processor.gradient_rate
        rows = rows_on_a_device(part, batch, devices)
        compute += part.count * part.cost * rows / rate
        overhead += part.count * part.cost * processor.overhead
    work = recipe.matrices(devices)
    collectives = [
        (2, 1, 4 * (weights + 1)),
        (2, recipe.products, recipe.product_bytes * weights),
        (2, recipe.numbers, 4),
        *((2, count, 4 * numbers) for count, numbers in work.reduced),
        *((1, count, 4 * numbers) for count, numbers in work.gathered),
    ]
    sent = [
        (n, all_reduce(b, devices, network, rounds)) for rounds, n, b in collectives
    ]
    return Breakdown(
        compute=compute,
        overhead=overhead,
        bandwidth=sum(count * t.bandwidth for count, t in sent),
        latency=sum(count * t.latency for count, t in sent),
        vectors=4 * weights * recipe.sweeps / processor.memory_bandwidth,
        preconditioner=work.flops / processor.matrix_flops
        + work.columns * processor.column
        + work.launches * processor.launch
        + 4 * work.numbers / processor.memory_bandwidth,
    )


def strong_efficiency(
    recipe: Recipe, weights: int, batch: int, devices: int, **machine: Any
) -> float:
    """Of the same batch on more devices: T(1) / (n T(n))."""
    alone = step(recipe, weights, batch, 1, **machine).seconds
    return alone / devices / step(recipe, weights, batch, devices, **machine).seconds


def weak_efficiency(
    recipe: Recipe, weights: int, share: int, devices: int, **machine: Any
) -> float:
    """Of so many examples on each device: the part of a step that is not communication.

    Compared is the step of all devices with the same work on one of them, as the step
    itself changes with the batch (curvature takes a quarter of large ones).
    """
    taken = step(recipe, weights, share * devices, devices, **machine)
    return 1 - taken.communication / taken.seconds


def serial_share(devices: Sequence[int], seconds: Sequence[float]) -> float:
    """The part of a step on one device that more devices do not make shorter.

    Fits ``seconds = compute / n + rest`` by least squares of the relative error and
    returns ``rest / (compute + rest)``.
    """
    pairs = zip(devices, seconds, strict=True)
    compute, rest = _fit([(1 / (n * t), 1 / t) for n, t in pairs])
    return rest / (compute + rest)
