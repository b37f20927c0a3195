"""The table of mini-batch optimizers: training loss, and the best held-out loss."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from benchmarks.reports.poster import EQUAL
from benchmarks.reports.records import Record, spread
from benchmarks.reports.scaling import table
from benchmarks.reports.tables import floor, number

BEGIN, END = "<!-- minibatch-table:begin -->", "<!-- minibatch-table:end -->"
OURS = "kronecker_adam"
# Each with the name of its column. The last ones are evaluated at the same average of
# the iterates as ours.
FIRST_ORDER = {
    "adam_minibatch": "Adam",
    "adamw_minibatch": "AdamW",
    "sgd_minibatch": "SGD",
}
OTHERS = {"muon_minibatch": "Muon", "soap_minibatch": "SOAP"}
AVERAGED = {"adam_averaged": "Adam, averaged", "soap_averaged": "SOAP, averaged"}
RIVALS = FIRST_ORDER | OTHERS | AVERAGED
NOTE = (
    "Training loss at the end; below it the held-out loss at the step that validation "
    "data choose (each half of the held-out examples is scored where the other half "
    "has its lowest loss), and the held-out score there. Medians over the seeds. The "
    "lowest losses of a row are bold. All but kronecker_adam are tuned on seed 0, "
    "twice: by the training loss at the end, and for the held-out numbers by the "
    "lowest loss of a tenth of the training examples, which is set aside for it. "
    "Learning rates are half a decade apart until the best is inside, constant and "
    "cosine; the averaged ones have a constant rate. All have the smallest batches of "
    "the problem."
)


class Pair(NamedTuple):
    """An optimizer on a scenario, tuned in two ways; twice the same if not tuned."""

    by_training: Record
    by_validation: Record

    @property
    def losses(self) -> tuple[float, float]:
        """Medians of the training loss and of the validated held-out loss."""
        training = spread(self.by_training, lambda run: run["loss"])[0]
        held_out = spread(self.by_validation, lambda run: run["validated"]["loss"])[0]
        return training, held_out


def grouped(
    by_training: Sequence[Record], by_validation: Sequence[Record]
) -> dict[str, dict[str, Pair]]:
    """Ours and its rivals, by scenario and optimizer.

    An optimizer that was tuned in one way only is left out, and so is a scenario
    without ours or without a rival.
    """
    validated = {(r["scenario"], r["optimizer"]): r for r in by_validation}
    found: dict[str, dict[str, Pair]] = {}
    for record in by_training:
        scenario, name = record["scenario"], record["optimizer"]
        other = record if name == OURS else validated.get((scenario, name))
        if other and (name == OURS or name in RIVALS):
            found.setdefault(scenario, {})[name] = Pair(record, other)
    return {name: g for name, g in found.items() if OURS in g and len(g) > 1}


def wins(
    groups: dict[str, dict[str, Pair]], rivals: Sequence[str], which: int
) -> tuple[int, int]:
    """On how many scenarios our loss is at most the best rival's, and of how many.

    Losses count as equal if they differ by less than a thousandth of the descent from
    the start to the lowest one. Scenarios without one of the rivals are left out.

    Args:
        groups: the records of each scenario.
        rivals: the names of the others.
        which: 0 for the training loss, 1 for the held-out loss.
    """
    won = compared = 0
    for group in groups.values():
        if not set(rivals) <= set(group):
            continue
        losses = [group[name].losses[which] for name in rivals]
        best, own = min(losses), group[OURS].losses[which]
        start = group[OURS].by_training["runs"][0]["curve"]["loss"][0]
        margin = EQUAL * max(start - min(best, own), 0.0)
        compared += 1
        won += math.isfinite(own) and own <= best + margin
    return won, compared


def headline(groups: dict[str, dict[str, Pair]]) -> str:
    """On how many problems ours is as good, part by part of the rivals."""

    def of(rivals: Sequence[str], which: int) -> str:
        return "{} of {}".format(*wins(groups, rivals, which))

    first, learned = list(FIRST_ORDER), list(FIRST_ORDER | OTHERS)
    averaged = list(AVERAGED)
    return (
        "kronecker_adam, without a setting, ends at least as low in training loss as "
        f"the best of tuned Adam, AdamW and SGD on {of(first, 0)} problems, as the "
        f"best of these, Muon and SOAP on {of(learned, 0)}, and as the better of Adam "
        f"and SOAP with the same average of iterates on {of(averaged, 0)}. Its "
        "held-out loss where validation data stop is at most that of the best of the "
        f"first five on {of(learned, 1)}, and of the averaged two on {of(averaged, 1)}."
    )


def markdown(groups: dict[str, dict[str, Pair]]) -> str:
    """The sentence, the table and the note."""
    columns = {OURS: OURS} | RIVALS
    rows = []
    for name, group in groups.items():
        losses = {o: group[o].losses for o in columns if o in group}
        lowest = [min(values) for values in zip(*losses.values(), strict=True)]
        own = group[OURS].by_training
        setup = f"`{name}`<br>{own['budget']:g} gradients, {len(own['runs'])} seeds"
        cells = [_cell(group[o], lowest) if o in group else "not run" for o in columns]
        rows.append([setup, *cells])
    shown = table(["problem", *columns.values()], rows)
    return "\n\n".join([headline(groups), shown, NOTE])


def _cell(pair: Pair, lowest: Sequence[float]) -> str:
    texts = [number(value, floor(pair.by_training)) for value in pair.losses]
    shown = [
        f"**{text}**" if value == best else text
        for text, value, best in zip(texts, pair.losses, lowest, strict=True)
    ]
    record = pair.by_validation
    score = spread(record, lambda run: run["validated"]["metric"])[0]
    return "<br>".join([*shown, f"{record['metric']} {number(score)}"])
