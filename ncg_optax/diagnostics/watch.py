"""Shows a run: numbers for a logger, a live table, a plot.

:func:`to_dict` needs no other package; :func:`live_table` needs rich and :func:`plot`
matplotlib, which come with ``pip install "ncg_optax[watch]"`` and are imported when
they are used. :func:`ncg_optax.diagnose` says what the numbers mean.
"""

from typing import Any

from ncg_optax._utils.status import Status
from ncg_optax.diagnostics.plot import plot
from ncg_optax.diagnostics.read_infos import read_info
from ncg_optax.diagnostics.table import live_table

__all__ = ["live_table", "plot", "to_dict"]

PyTree = Any


def to_dict(
    state: PyTree, prefix: str = "", words: bool = False
) -> dict[str, float | str]:
    """The measurements of the last step as a flat dictionary, for a logger.

    All numbers are fetched in one transfer, which waits until the step is done.

    Args:
      state: an optimizer state that contains a :class:`NewtonCGInfo`, or an info; of
        ``pmap`` too if the devices agree.
      prefix: of each name, such as ``"newton_cg/"``.
      words: add ``status_name`` and ``solver_status_name``, such as ``"SHORTENED"``,
        for loggers that take text (``wandb.log`` does, TensorBoard's ``add_scalar``
        does not).

    Returns:
      The fields of the :class:`NewtonCGInfo` by name, as Python floats; status codes
      too. The names are the same at every step.

    Raises:
      TypeError: if it is called under jit.
      ValueError: if there is no info, more than one, or one of several steps; if the
        devices disagree.

    Examples:
      >>> import jax.numpy as jnp
      >>> import ncg_optax as ncg
      >>> from ncg_optax import watch
      >>> f = lambda w: jnp.sum((w - 1.0) ** 2)
      >>> tx, w = ncg.newton_cg(damping=0.0), jnp.zeros(2)
      >>> _, state = tx.update(-2.0 * jnp.ones(2), tx.init(w), w, value_fn=f)
      >>> numbers = watch.to_dict(state, prefix="newton_cg/")
      >>> numbers["newton_cg/loss"], numbers["newton_cg/cg_iterations"]
      (2.0, 1.0)
      >>> watch.to_dict(state, words=True)["status_name"]
      'ACCEPTED'

      With TensorBoard, ``for name, x in watch.to_dict(state).items():
      writer.add_scalar(name, x, step)``; with Weights & Biases,
      ``wandb.log(watch.to_dict(state, words=True), step)``.
    """
    info = read_info("watch.to_dict", state)
    numbers: dict[str, float | str] = {
        name: float(x) for name, x in info._asdict().items()
    }
    if words:
        for name in ("status", "solver_status"):
            numbers[f"{name}_name"] = Status(int(getattr(info, name))).name
    return {f"{prefix}{name}": x for name, x in numbers.items()}
