"""What a device does for kronecker's matrices in a step, and what it sends."""

import math
from collections import Counter
from collections.abc import Sequence

from benchmarks.scaling.cost_model import Matrices
from ncg_optax.preconditioners import kronecker
from ncg_optax.preconditioners.sharing import MIN_ROWS

# Assumption: how often a step reads or writes every factor on every device, for the
# running means, the stacks and the inverses.
SWEEPS = 30


def matrices(
    sides: Sequence[tuple[int, int]],
    settings: kronecker,
    applications: int,
    steps: int,
    devices: int,
) -> Matrices:
    """Of leaves of these sides, with so many applications, after so many steps.

    That is the mean over steps in which each factor is due once.
    """
    every = settings.refresh
    period = max(1.0, float(every(steps) if callable(every) else every))

    def own(k: int) -> int:
        return -(-k // devices) if k >= MIN_ROWS else k

    full = Counter(k for pair in sides for k in pair if 1 < k <= settings.max_size)
    grams = apply = 0
    for m, n in sides:
        for k in (m, n):
            grams += 2 * own(k) * m * n * (k in full)
            apply += 2 * own(m) * n * k * (k in full)
    inverses = sum(count * 2 * own(k) * k * k for k, count in full.items())
    numbers = sum(count * k * k for k, count in full.items())
    flops = settings.probes * grams + inverses + applications * apply
    columns, reduced = 0.0, []
    for k, count in full.items():
        due = count / period
        # Each stack ends with an all-reduce, at which the devices wait for each other.
        least, rest = divmod(due, 1)
        rounds = (1 - rest) * math.ceil(least / devices)
        rounds += rest * math.ceil((least + 1) / devices)
        columns += rounds * settings.iterations * k
        # With G Q and the QR decomposition; then the Rayleigh quotients.
        flops += rounds * (settings.iterations * (2 + 8 / 3) + 2) * k**3
        reduced.append((min(due, 1.0), count * (2 * k * k + k)))
    gathered = sum(count * k * k for k, count in full.items() if k >= MIN_ROWS)
    vector = sum(m * n for m, n in sides if m >= MIN_ROWS)
    return Matrices(
        flops=flops,
        columns=columns,
        launches=(settings.probes + applications) * full.total() + 2 * len(full),
        numbers=SWEEPS * numbers,
        # Gram matrices and inverses once a step.
        gathered=((2, gathered), (applications, vector)),
        reduced=tuple(reduced),
    )
