"""What competes: a problem with a budget, and an optimizer bound to it."""

from collections.abc import Callable
from typing import Any, NamedTuple

from benchmarks.scenarios import Scenario
from benchmarks.scenarios._base import Batch, Params
from benchmarks.training.cost import CostModel

State = Any


class Setting(NamedTuple):
    """What is tuned for a first-order method; the others have no setting at all.

    Attributes:
        batch: examples in a step, ``None`` for all of them.
        schedule: one of `SCHEDULES`.
        exponent: the learning rate in half decades, so that grids can grow exactly.
    """

    batch: int | None
    schedule: str
    exponent: int

    @property
    def learning_rate(self) -> float:
        """The learning rate.

        Example:
            >>> Setting(None, "constant", -4).learning_rate
            0.01
        """
        return 10.0 ** (self.exponent / 2)

    def __str__(self) -> str:
        batch = "full batch" if self.batch is None else f"batch {self.batch}"
        return f"lr {self.learning_rate:.1e}, {batch}, {self.schedule}"


class Problem(NamedTuple):
    """A scenario with its data and the budget of a run, in gradients."""

    scenario: Scenario
    train: Batch
    held_out: Batch
    budget: float

    @property
    def examples(self) -> int:
        return len(self.train["y"])


class Method(NamedTuple):
    """An optimizer bound to a problem.

    Attributes:
        init: ``init(params, seed, learning_rate) -> state``, jittable.
        advance: ``advance(params, state, data) -> (params, state)``, jittable: one
            step, or an epoch of mini-batch steps, or a part of one.
        spent: gradients that the latest `advance` cost, from its state.
        steps: optimizer steps in one `advance`.
        prices: costs of the parts of a Newton-CG step; ``None`` for other methods.
        compiles: whether `init` and `advance` compile what they need by themselves,
            and must not be jitted.
    """

    init: Callable[[Params, Any, Any], State]
    advance: Callable[[Params, State, Batch], tuple[Params, State]]
    spent: Callable[[State], float]
    steps: int = 1
    prices: CostModel | None = None
    compiles: bool = False


class Competitor(NamedTuple):
    """An optimizer that can enter the comparison.

    Attributes:
        name: its name on the command line.
        description: one line for ``python -m benchmarks list``.
        build: binds it to a problem; only batch and schedule of the setting matter.
        exponents: learning rates to begin the tuning with, in half decades; empty if
            there is nothing to tune.
        minibatch: whether it takes shuffled mini-batches, as large as the scenario's
            `batch_sizes`, instead of the full batch.
        registers: whether it has to know the kind of loss by name.
        exact: whether it solves to the last digits, which needs float64.
        deterministic: whether it needs the same loss at every step.
        needs_poster: whether it takes its settings from the poster's code.
        batch: largest number of examples in a mini-batch, for a method that does not
            use the scenario's `batch_sizes`.
    """

    name: str
    description: str
    build: Callable[[Problem, Setting | None], Method]
    exponents: range = range(0)
    minibatch: bool = False
    registers: bool = False
    exact: bool = False
    deterministic: bool = False
    needs_poster: bool = False
    batch: int | None = None

    def fits(self, scenario: Scenario) -> bool:
        """Whether it can enter the comparison on a scenario at all."""
        if self.registers and scenario.registration is None:
            return False
        if self.exact and not scenario.x64:
            return False
        if self.deterministic and scenario.random:
            return False
        if self.needs_poster:
            return scenario.poster is not None
        return bool(scenario.batch_sizes) if self.minibatch else scenario.full_batch
