"""The settings of which examples the curvature sees, and how many at a time."""

import dataclasses

from ncg_optax._utils import validate
from ncg_optax._utils.parts import Part


@dataclasses.dataclass(frozen=True)
class sampling(Part):  # noqa: N801
    r"""Which examples the curvature sees, and how many are processed at a time.

    **A sample for the curvature.** The gradient is the one that is passed to
    ``update``, and the loss is that of the whole batch. The curvature only shapes the
    step, and a sample of the batch is enough for it (Byrd, Chin, Neveitt and Nocedal
    2011). A product on a quarter of the examples costs a quarter. The sample for a
    fraction of 1/4 is every fourth example, and starts at another example at each
    step. It has at least ``min_examples`` examples: the noise of a curvature depends
    on how many examples it sees, and with too few of them the optimizer needs so many
    more steps that the whole costs more, unless the gradient is as noisy
    (mini-batches).

    The data must be visible: arguments of ``update`` or of ``CompositeLoss.bind``. The
    arrays with the longest first axis among them run over the examples. So series with
    time first are thinned out in time; a warning says so where the outputs, or the
    labels of a plain loss, have another first axis. The whole batch is used if the data
    is hidden in a closure, or if there are several kinds of examples (the points of a
    physics-informed network). To choose the examples yourself, pass
    ``curvature_batch=dict(x=..., y=...)`` to ``update``.

    **From the sample to the whole batch.** Far from the minimum any sample gives a
    useful direction. Near it a solver finds directions in which the curvature of this
    sample is small and that of the whole batch is not, and the loss decreases less
    than the model predicts. With ``grow_below`` the curvature is that of the whole
    batch, for the rest of the run, once the ratio of the two along a step,

    .. math::
      \frac{d^T B_{\text{sample}}\, d}{d^T B\, d},

    is less than that. It is measured at every fourth step, for one product. (Byrd,
    Chin, Nocedal and Wu 2012 let the samples of gradients grow, by their variance.)
    Linearising the whole batch costs nothing if the gradient is computed in the same
    jitted function and at the same matrix precision, else a forward pass a step. Under
    `jax.vmap` all products are computed.

    **Microbatches.** With ``microbatch_size`` products and trial values process that
    many examples at a time, for a loss that is the mean over the examples:

    .. math::
      B v = \frac1m \sum_{i=1}^m B_i v

    The memory is that of one microbatch; a product costs a forward pass more.

    Attributes:
      curvature_fraction: share of the examples in the curvature, in (0, 1], rounded to
        one over a whole number.
      microbatch_size: examples at a time, a divisor of their number; None for all.
      min_examples: least number of examples in the curvature, over all devices; the
        whole batch if it has fewer.
      grow_below: curvature of the sample over that of the whole batch, in [0, 1],
        below which the whole batch is used from then on; None always uses the sample,
        as do solvers that work on the loss itself (:func:`residual_space`).

    Raises:
      TypeError: if a setting is not a number, or ``microbatch_size`` or
        ``min_examples`` not an integer.
      ValueError: if a setting is out of range; in ``update``, if ``microbatch_size``
        does not divide the number of examples or the data is not visible.

    Examples:
      >>> import ncg_optax as ncg
      >>> ncg.sampling(curvature_fraction=1 / 8, microbatch_size=512)
      sampling(curvature_fraction=0.125, microbatch_size=512)
      >>> tx = ncg.newton_cg(
      ...     curvature=ncg.gauss_newton(),
      ...     sampling=ncg.sampling(curvature_fraction=1 / 8, microbatch_size=512),
      ... )
    """

    curvature_fraction: float = 1.0
    microbatch_size: int | None = None
    min_examples: int = 512
    grow_below: float | None = None

    def __post_init__(self):
        who = "sampling: "
        validate.number(
            who + "curvature_fraction",
            self.curvature_fraction,
            low=0.0,
            high=1.0,
            low_open=True,
        )
        if self.microbatch_size is not None:
            validate.integer(who + "microbatch_size", self.microbatch_size, low=1)
        validate.integer(who + "min_examples", self.min_examples, low=1)
        if self.grow_below is not None:
            validate.number(who + "grow_below", self.grow_below, low=0.0, high=1.0)


# For annotations, where a setting is called `sampling` as well.
Sampling = sampling
