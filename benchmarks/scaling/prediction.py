"""What the cost model says of ResNet-50 on A100s, beside the poster's 80.4 percent.

The strong scaling of one batch, the weak scaling of 64 images a device, what limits
each, and how the settings move it.
"""

import functools
import math
from collections.abc import Sequence

import jax

from benchmarks.reports.records import Record
from benchmarks.scaling import cost_model
from benchmarks.scaling.cost_model import A100_RESNET50, Pass, Processor, Recipe

POSTER_DEVICES = (1, 2, 4, 8)
POSTER_SECONDS = (238.0, 121.0, 65.0, 37.0)  # an epoch, batch 512
POSTER_EFFICIENCY = 0.804
TARGET = 0.95
# Batch and devices. A batch of 512 cannot be shared by more devices than images.
STRONG = ((512, 8), (512, 64), (4096, 64), (32768, 64), (32768, 1024), (131072, 1024))
STOCHASTIC_BATCH = 1024
SHARE = 64  # images a device
WEAK = (8, 64, 1024)
MAX_SIZE = 1024  # of the sides of kronecker's factors
HESSIAN, GAUSS_NEWTON = 1.5, 1.2  # gradients that a product costs
# A product reads and writes direction, residual, product and solution a few times.
SWEEPS_PER_PRODUCT = 12
ADAM_SWEEPS = 8
# Each of five secant pairs is met in two loops an application, with a read or write of
# five vectors, in four applications; then the new pair is added to the others.
PAIR_SWEEPS = 4 * 5 * 2 * 5 + 40


def kronecker_numbers(sides: Sequence[tuple[int, int]]) -> int:
    """Numbers in the inverses of all factors."""
    return sum(k**2 for pair in sides for k in pair if 1 < k <= MAX_SIZE)


@functools.cache
def resnet50_sides() -> tuple[tuple[int, int], ...]:
    """The leaves of ResNet-50 as matrices, the way that kronecker folds them."""
    from benchmarks.scaling.models import RESNET50

    shapes = [leaf.shape for leaf in jax.tree.leaves(RESNET50.parameters())]
    return tuple(
        (math.prod(shape[:-1]), shape[-1]) if len(shape) > 1 else (math.prod(shape), 1)
        for shape in shapes
    )


def kronecker_work(sides: Sequence[tuple[int, int]]) -> tuple[float, float]:
    """Operations of one application, and of all decompositions.

    As its docstring says: 2 m n (m + n) and 12 (m^3 + n^3) a leaf; sides longer than
    `MAX_SIZE` have diagonal factors, which cost nothing beside these.
    """
    full = [[k if k <= MAX_SIZE else 0 for k in pair] for pair in sides]
    pairs = zip(sides, full, strict=True)
    apply = sum(2 * m * n * (a + b) for (m, n), (a, b) in pairs)
    return apply, sum(12 * (a**3 + b**3) for a, b in full)


def weights() -> int:
    """How many ResNet-50 has."""
    return sum(m * n for m, n in resnet50_sides())


def _gradient() -> Pass:
    return Pass(1, 1)


def _value(products: Pass) -> Pass:
    """One value of the loss on the examples of some products."""
    return products._replace(count=1, cost=1 / 3)


def adam() -> Recipe:
    """The comparison: a gradient."""
    return Recipe("adam", (_gradient(),), sweeps=ADAM_SWEEPS)


def poster() -> Recipe:
    """The poster's optimizer, with products of all examples: 20 of the Hessian."""
    return Recipe(
        "newton_cg, 20 Hessian products",
        (_gradient(), Pass(20, HESSIAN, precise=True), Pass(1, 1 / 3)),
        products=20,
        numbers=1,
        sweeps=20 * SWEEPS_PER_PRODUCT,
    )


def hessian_free(
    name: str = "hessian_free",
    fraction: float = 1 / 4,
    precise: bool = True,
    product_bytes: int = 4,
    preconditioner: bool = True,
    refresh: int = 5,
    shared: bool = False,
) -> Recipe:
    """The preset: four iterations, secant pairs, four probes.

    As it is before the sample and the number of iterations grow, with a product of the
    whole batch in every fourth step; ``fraction=1`` is for a sample that has grown.

    Args:
        name: of the row.
        fraction: of the batch in the curvature, but 128 examples at least.
        precise: products in full float32 instead of TF32.
        product_bytes: of one number that is sent.
        preconditioner: kronecker or none.
        refresh: steps from one decomposition to the next.
        shared: whether each device decomposes its share of the matrices.
    """
    solver = Pass(4, GAUSS_NEWTON, fraction, 128, precise)
    # Linearising costs a value: of the batch with the gradient, of each sample.
    passes = [_gradient(), solver, Pass(1, 1 / 3), _value(solver)]
    checks = 0.25 if fraction < 1 else 0  # a product with the whole batch
    whole = Pass(checks, GAUSS_NEWTON, precise=precise)
    passes += [whole, _value(whole)] if fraction < 1 else [whole]
    recipe = Recipe(
        name,
        tuple(passes),
        products=4 + checks,
        numbers=1,
        product_bytes=product_bytes,
        sweeps=4 * SWEEPS_PER_PRODUCT + PAIR_SWEEPS,
    )
    if not preconditioner:
        return recipe
    return _with_kronecker(recipe, 4, 5, refresh, precise, shared)


def stochastic_hessian_free() -> Recipe:
    """The preset from step 20 on: a product, a trial on its sample, a probe."""
    product = Pass(1, GAUSS_NEWTON, 1 / 4, 128, precise=True)
    trial = _value(product)._replace(precise=False)
    passes = (_gradient(), product, _value(product), trial)
    sweeps = SWEEPS_PER_PRODUCT + ADAM_SWEEPS  # the mean of the gradients
    recipe = Recipe(
        "stochastic_hessian_free", passes, products=1, numbers=1, sweeps=sweeps
    )
    return _with_kronecker(recipe, probes=1, applications=1, refresh=10)


def _with_kronecker(
    recipe: Recipe,
    probes: int,
    applications: int,
    refresh: int,
    precise: bool = True,
    shared: bool = False,
) -> Recipe:
    """The recipe with kronecker, which takes products on an eighth of the batch."""
    probing = Pass(probes, GAUSS_NEWTON, 1 / 8, 32, precise)
    apply, decompose = kronecker_work(resnet50_sides())
    return recipe._replace(
        passes=(*recipe.passes, probing, _value(probing)),
        products=recipe.products + probes,
        sweeps=recipe.sweeps + probes * SWEEPS_PER_PRODUCT,
        # A product that the factors are made of costs as much as an application.
        matrix_flops=(applications + probes) * apply,
        eigen_flops=decompose / refresh,
        shared_numbers=kronecker_numbers(resnet50_sides()) / refresh if shared else 0,
    )


def recipes() -> tuple[Recipe, ...]:
    """The optimizers of the tables that see the same batches."""
    return adam(), poster(), hessian_free()


def variants() -> tuple[Recipe, ...]:
    """hessian_free, one setting changed at a time."""
    return (
        hessian_free("as it comes"),
        hessian_free("products sent in bfloat16", product_bytes=2),
        hessian_free("products computed in TF32", precise=False),
        hessian_free("curvature of the whole batch", fraction=1),
        hessian_free("decompositions every 50 steps", refresh=50),
        hessian_free("decompositions shared by the devices (not built)", shared=True),
        hessian_free("no preconditioner", preconditioner=False),
    )


def processors() -> dict[str, Processor]:
    """The range of the one number that decides and that is known least."""
    quarter = A100_RESNET50.overhead / 4
    return {
        "published": A100_RESNET50,
        "a quarter": A100_RESNET50._replace(overhead=quarter),
        "none": A100_RESNET50._replace(overhead=0.0),
    }


def strong_row(recipe: Recipe, batch: int, devices: int) -> Record:
    """Efficiency over the range of overheads, and where the seconds go."""
    taken = cost_model.step(recipe, weights(), batch, devices)
    return {
        "recipe": recipe.name,
        "batch": batch,
        "devices": devices,
        "efficiency": {
            name: cost_model.strong_efficiency(
                recipe, weights(), batch, devices, processor=processor
            )
            for name, processor in processors().items()
        },
        "seconds": taken.seconds,
        "parts": {name: part / taken.seconds for name, part in taken._asdict().items()},
        "limit": taken.limit,
    }


def weak_row(recipe: Recipe, devices: int) -> Record:
    """Efficiency with 64 images a device, and the step's seconds."""
    taken = cost_model.step(recipe, weights(), SHARE * devices, devices)
    return {
        "recipe": recipe.name,
        "batch": SHARE * devices,
        "devices": devices,
        "efficiency": cost_model.weak_efficiency(recipe, weights(), SHARE, devices),
        "seconds": taken.seconds,
        "communication": taken.communication / taken.seconds,
    }


def slower_network(recipe: Recipe, batch: int, devices: int) -> float:
    """Strong efficiency if every all-reduce takes twice as long."""
    halved = []
    for a in cost_model.DGX_A100.algorithms:
        latency = {name: 2 * getattr(a, name) for name in ("base", "inside", "between")}
        rates = {n: getattr(a, n) / 2 for n in ("node_bandwidth", "network_bandwidth")}
        halved.append(a._replace(**latency, **rates))
    network = cost_model.DGX_A100._replace(algorithms=tuple(halved))
    return cost_model.strong_efficiency(
        recipe, weights(), batch, devices, network=network
    )


def predict() -> Record:
    """All tables, as plain numbers."""
    sgd, network = Recipe("sgd", (_gradient(),), sweeps=3), cost_model.DGX_A100
    latency = 1e6 * cost_model.all_reduce(4, 256, network).seconds
    weak_sgd = cost_model.weak_efficiency(sgd, weights(), 256, 8)
    published = cost_model.PUBLISHED_WEAK_SCALING
    return {
        "weights": weights(),
        "sources": cost_model.SOURCES,
        "processor": A100_RESNET50._asdict(),
        "network": {
            "per_node": network.per_node,
            "algorithms": [a._asdict() for a in network.algorithms],
        },
        "poster": {
            "devices": POSTER_DEVICES,
            "seconds": POSTER_SECONDS,
            "efficiency": POSTER_EFFICIENCY,
            "serial_share": cost_model.serial_share(POSTER_DEVICES, POSTER_SECONDS),
            "target": TARGET,
        },
        "checks": {
            "sgd on 8 A100, 256 images each": {
                "model": weak_sgd,
                "published": published,
            },
            "microseconds of 4 bytes on 256 A100": {
                "model": latency,
                "published": 63.0,
            },
        },
        "strong": [strong_row(r, *place) for place in STRONG for r in recipes()]
        + [strong_row(stochastic_hessian_free(), STOCHASTIC_BATCH, n) for n in (8, 64)],
        "weak": [weak_row(r, devices) for devices in WEAK for r in recipes()],
        "variants": [
            strong_row(r, *place) | {"half_network": slower_network(r, *place)}
            for place in ((512, 8), (4096, 8), (32768, 1024))
            for r in variants()
        ],
    }
