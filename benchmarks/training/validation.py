"""The held-out score at a step that other held-out examples choose."""

import math
from collections.abc import Sequence
from statistics import fmean
from typing import NamedTuple

import jax

from benchmarks.peers import Problem
from benchmarks.scenarios._base import Batch


class Score(NamedTuple):
    """What some held-out examples say of the parameters after so many gradients."""

    units: float
    loss: float
    metric: float


class Validated(NamedTuple):
    """The mean of two scores: each half is scored where the other one is best.

    That is the step at which a user would stop, who has validation data. No example
    has a part in the choice of the step that it is scored at.
    """

    units: float
    loss: float
    metric: float


def halves(problem: Problem) -> list[Batch]:
    """Every second held-out example, and the others; nothing if there is no such half.

    A scenario whose examples cannot be drawn one by one has no halves.
    """
    if not problem.scenario.batch_sizes or len(problem.held_out["y"]) < 2:
        return []
    count = len(problem.held_out["y"]) // 2 * 2  # equal shapes are compiled once
    return [
        jax.tree.map(lambda leaf, i=i: leaf[i:count:2], problem.held_out)
        for i in (0, 1)
    ]


def validated(points: Sequence[Sequence[Score]]) -> Validated | None:
    """The held-out score where validation data would stop.

    Args:
        points: for some points of a run the scores of both halves.
    """
    curves = [[Score(*score) for score in curve] for curve in zip(*points, strict=True)]
    if not curves:
        return None

    def best(curve: list[Score]) -> int:
        losses = [s.loss if math.isfinite(s.loss) else math.inf for s in curve]
        return losses.index(min(losses))

    first, second = curves
    chosen = first[best(second)], second[best(first)]
    return Validated(*(fmean(values) for values in zip(*chosen, strict=True)))
