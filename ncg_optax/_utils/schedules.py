"""A schedule for the settings of parts."""

import dataclasses

import jax
import optax

from ncg_optax._utils.parts import Part


@dataclasses.dataclass(frozen=True)
class linear_schedule(Part):  # noqa: N801
    """`optax.linear_schedule` with a repr that shows its settings.

    Attributes:
      init_value: value at step 0.
      end_value: value from step ``transition_steps`` on.
      transition_steps: number of steps between the two.

    Examples:
      >>> from ncg_optax._utils.schedules import linear_schedule
      >>> schedule = linear_schedule(4, 20, 300)
      >>> print(schedule(150), schedule(1000))
      12.0 20.0
    """

    init_value: float
    end_value: float
    transition_steps: int

    def __call__(self, count: jax.typing.ArrayLike) -> jax.typing.ArrayLike:
        """The value after ``count`` steps."""
        return optax.linear_schedule(
            self.init_value, self.end_value, self.transition_steps
        )(count)
