"""What the cost model says of ResNet-50 on A100s, beside the poster's 80.4 percent.

The strong scaling of one batch, the weak scaling of 64 images a device, what limits
each, and how the settings move it.
"""

import functools

import jax

from benchmarks.reports.records import Record
from benchmarks.scaling import cost_model, kronecker_work
from benchmarks.scaling.cost_model import A100_RESNET50, Pass, Processor, Recipe
from ncg_optax.preconditioners.kronecker_factors import as_matrix
from ncg_optax.presets import DEFAULTS
from ncg_optax.step.model import MIN_EXAMPLES

POSTER_DEVICES = (1, 2, 4, 8)
POSTER_SECONDS = (238.0, 121.0, 65.0, 37.0)  # an epoch, batch 512
POSTER_EFFICIENCY = 0.804
TARGET = 0.95
# Batch and devices. A batch of 512 cannot be shared by more devices than images.
STRONG = ((512, 8), (512, 64), (4096, 64), (32768, 64), (32768, 1024), (131072, 1024))
STOCHASTIC_BATCH = 1024
SHARE = 64  # images a device
WEAK = (8, 64, 1024)
GRADIENT = Pass(1, 1)
HESSIAN, GAUSS_NEWTON = 1.5, 1.2  # gradients that a product costs
# A product reads and writes direction, residual, product and solution a few times.
SWEEPS_PER_PRODUCT = 12
ADAM_SWEEPS = 8
# Each of five secant pairs is met in two loops an application, with a read or write of
# five vectors; once a step the new pair is added to the others.
PAIR_SWEEPS, NEW_PAIR_SWEEPS = 5 * 2 * 5, 40


@functools.cache
def resnet50_sides() -> tuple[tuple[int, int], ...]:
    """The leaves of ResNet-50 as matrices, the way that kronecker folds them."""
    from benchmarks.scaling.models import RESNET50

    leaves = jax.tree.leaves(RESNET50.parameters())
    return tuple(jax.eval_shape(as_matrix, leaf).shape for leaf in leaves)


def weights() -> int:
    """How many ResNet-50 has."""
    return sum(m * n for m, n in resnet50_sides())


def _value(products: Pass) -> Pass:
    """One value of the loss on the examples of some products."""
    return products._replace(count=1, cost=1 / 3)


def adam() -> Recipe:
    """The comparison: a gradient."""
    return Recipe("adam", (GRADIENT,), sweeps=ADAM_SWEEPS)


def poster() -> Recipe:
    """The poster's optimizer, with products of all examples: 20 of the Hessian."""
    return Recipe(
        "newton_cg, 20 Hessian products",
        (GRADIENT, Pass(20, HESSIAN, precise=True), Pass(1, 1 / 3)),
        products=20,
        numbers=1,
        sweeps=20 * SWEEPS_PER_PRODUCT,
    )


def hessian_free(
    name: str = "hessian_free",
    steps: int = 0,
    fraction: float | None = None,
    precise: bool = True,
    product_bytes: int = 4,
    preconditioner: bool = True,
) -> Recipe:
    """The preset after some steps, with as many iterations as it may make.

    Before the sample grows, with a product of the whole batch in every fourth step;
    ``fraction=1`` is for a sample that has grown, None for the preset's. ``precise``
    products are in float32 instead of TF32, ``product_bytes`` those of one number.
    """
    preset = DEFAULTS["hessian_free"]
    sample, iterations = preset["sampling"], int(preset["solver"].solver.maxiter(steps))
    fraction = fraction or sample.curvature_fraction
    solver = Pass(iterations, GAUSS_NEWTON, fraction, sample.min_examples, precise)
    # Linearising costs a value: of the batch with the gradient, of each sample.
    passes = [GRADIENT, solver, Pass(1, 1 / 3), _value(solver)]
    checks = 0.25 if fraction < 1 else 0  # a product with the whole batch
    whole = Pass(checks, GAUSS_NEWTON, precise=precise)
    passes += [whole, _value(whole)] if fraction < 1 else [whole]
    pairs = iterations * PAIR_SWEEPS + NEW_PAIR_SWEEPS
    recipe = Recipe(
        name,
        tuple(passes),
        products=iterations + checks,
        numbers=1,
        product_bytes=product_bytes,
        sweeps=iterations * SWEEPS_PER_PRODUCT + pairs,
    )
    if not preconditioner:
        return recipe
    return _with_kronecker(recipe, "hessian_free", iterations + 1, steps, precise)


def stochastic_hessian_free() -> Recipe:
    """The preset from step 20 on: a product, a trial on its sample, a probe."""
    sample = DEFAULTS["stochastic_hessian_free"]["sampling"]
    least, fraction = sample.min_examples, sample.curvature_fraction
    product = Pass(1, GAUSS_NEWTON, fraction, least, precise=True)
    trial = _value(product)._replace(precise=False)
    passes = (GRADIENT, product, _value(product), trial)
    sweeps = SWEEPS_PER_PRODUCT + ADAM_SWEEPS  # the mean of the gradients
    recipe = Recipe(
        "stochastic_hessian_free", passes, products=1, numbers=1, sweeps=sweeps
    )
    return _with_kronecker(recipe, recipe.name, applications=1, steps=20)


def _with_kronecker(
    recipe: Recipe, preset: str, applications: int, steps: int, precise: bool = True
) -> Recipe:
    """The recipe with kronecker as a preset has it."""
    settings = DEFAULTS[preset]["preconditioner"]
    probes, share = settings.probes, settings.fraction
    probing = Pass(probes, GAUSS_NEWTON, share, MIN_EXAMPLES, precise)
    return recipe._replace(
        passes=(*recipe.passes, probing, _value(probing)),
        products=recipe.products + probes,
        sweeps=recipe.sweeps + probes * SWEEPS_PER_PRODUCT,
        matrices=lambda devices: kronecker_work.matrices(
            resnet50_sides(), settings, applications, steps, devices
        ),
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
        hessian_free("after 200 steps", steps=200),
        hessian_free("no preconditioner", preconditioner=False),
    )


def processors() -> dict[str, Processor]:
    """The range of the one number that decides and that is known least."""
    shares = {"published": 1, "a quarter": 1 / 4, "none": 0}
    return {
        name: A100_RESNET50._replace(overhead=share * A100_RESNET50.overhead)
        for name, share in shares.items()
    }


def strong_row(recipe: Recipe, batch: int, devices: int) -> Record:
    """Efficiency over the range of overheads, and where the seconds go."""
    taken = cost_model.step(recipe, weights(), batch, devices)
    whole = cost_model.strong_efficiency(recipe, weights(), batch, devices)
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
        # With every collective twice as slow.
        "half_network": whole / (1 + taken.communication / taken.seconds),
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
    }


def predict() -> Record:
    """All tables, as plain numbers."""
    sgd, network = Recipe("sgd", (GRADIENT,), sweeps=3), cost_model.DGX_A100
    latency = 1e6 * cost_model.all_reduce(4, 256, network).seconds
    scaled = cost_model.weak_efficiency(sgd, weights(), 256, 8)
    checks = {
        "sgd on 8 A100, 256 images each": (scaled, cost_model.PUBLISHED_WEAK_SCALING),
        "microseconds of 4 bytes on 256 A100": (latency, 63.0),
    }
    return {
        "weights": weights(),
        "sources": cost_model.SOURCES,
        "processor": A100_RESNET50._asdict(),
        "network": network._asdict()
        | {"algorithms": [a._asdict() for a in network.algorithms]},
        "poster": {
            "devices": POSTER_DEVICES,
            "seconds": POSTER_SECONDS,
            "efficiency": POSTER_EFFICIENCY,
            "serial_share": cost_model.serial_share(POSTER_DEVICES, POSTER_SECONDS),
            "target": TARGET,
        },
        "checks": {
            name: dict(zip(("model", "published"), pair, strict=True))
            for name, pair in checks.items()
        },
        "strong": [strong_row(r, *place) for place in STRONG for r in recipes()]
        + [strong_row(stochastic_hessian_free(), STOCHASTIC_BATCH, n) for n in (8, 64)],
        "weak": [weak_row(r, devices) for devices in WEAK for r in recipes()],
        "variants": [
            strong_row(r, *place)
            for place in ((512, 8), (4096, 8), (32768, 1024))
            for r in variants()
        ],
    }
