"""What competes: a problem with a budget, and an optimizer bound to it."""

from collections.abc import Callable
from typing import Any, NamedTuple

from benchmarks.scenarios import Scenario
from benchmarks.scenarios._base import Batch, Params
from benchmarks.training.cost import CostModel

State = Any


class Setting(NamedTuple):
    """What is tuned for a first-order method; the others have no setting at all."""

    batch: int | None  # examples in a step, ``None`` for all of them
    schedule: str  # one of `SCHEDULES`
    exponent: int  # the learning rate in half decades, so that grids can grow exactly

    @property
    def learning_rate(self) -> float:
        """The learning rate."""
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
    """An optimizer bound to a problem."""

    # ``init(params, seed, learning_rate) -> state``, jittable
    init: Callable[[Params, Any, Any], State]
    # ``advance(params, state, data) -> (params, state)``, jittable: one step, or an
    # epoch of mini-batch steps, or a part of one
    advance: Callable[[Params, State, Batch], tuple[Params, State]]
    spent: Callable[[State], float]  # gradients of the latest `advance`, from its state
    steps: int = 1  # optimizer steps in one `advance`
    prices: CostModel | None = None  # of the parts of a step, for Newton-CG
    compiles: bool = False  # whether it compiles by itself, and must not be jitted


class Competitor(NamedTuple):
    """An optimizer that can enter the comparison."""

    name: str  # its name on the command line
    description: str  # one line for ``python -m benchmarks list``
    # Binds it to a problem; only batch and schedule of the setting matter.
    build: Callable[[Problem, Setting | None], Method]
    exponents: range = range(0)  # of the first learning rates to try, in half decades
    schedules: tuple[str, ...] = ()  # to tune over, instead of the scenario's
    minibatch: bool = False  # whether it takes shuffled mini-batches, not all examples
    registers: bool = False  # whether it has to know the kind of loss by name
    exact: bool = False  # whether it solves to the last digits, which needs float64
    deterministic: bool = False  # whether it needs the same loss at every step
    named_only: bool = False  # whether it is left out where no optimizers are named
    needs_poster: bool = False  # whether it takes its settings from the poster's code
    # largest number of examples in a mini-batch, for a method that does not use the
    # scenario's `batch_sizes`
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
