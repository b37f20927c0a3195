"""How much earlier an optimizer was where another one ended."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from rich.table import Table

from benchmarks.reports import tables as report
from benchmarks.reports.poster import median_curve
from benchmarks.reports.records import Record


class Lead(NamedTuple):
    """An optimizer beside another one; medians over the seeds."""

    scenario: str  # where
    other: str  # whose last loss is the level
    level: float  # that loss
    units: float  # gradients until the optimizer was there; infinite if it never was
    seconds: float  # processor seconds until then
    other_seconds: float  # that the other one took

    @property
    def ratio(self) -> float:
        """How many times less processor time it took.

        0 if it never got there; infinite if it was there from the start, as beside one
        that diverged.

        Example:
            >>> Lead("boston", "adam", 0.1, 50.0, seconds=2.0, other_seconds=3.0).ratio
            1.5
        """
        return self.other_seconds / self.seconds if self.seconds else math.inf


def leads(records: Sequence[Record], optimizer: str) -> list[Lead]:
    """An optimizer beside all that ran on the same scenarios at the same budget."""
    mine = {r["scenario"]: r for r in records if r["optimizer"] == optimizer}
    found = []
    for record in records:
        ours = mine.get(record["scenario"])
        if ours in (None, record) or ours["budget"] != record["budget"]:
            continue
        theirs = median_curve(record["runs"], "cpu_seconds")
        level = theirs.end
        found.append(
            Lead(
                scenario=record["scenario"],
                other=record["optimizer"],
                level=level,
                units=median_curve(ours["runs"], "units").reach(level),
                seconds=median_curve(ours["runs"], "cpu_seconds").reach(level),
                other_seconds=theirs.reach(level),
            )
        )
    return found


def table(found: Sequence[Lead], optimizer: str) -> Table:
    """The leads of an optimizer, a row each."""
    rows = Table(
        title=f"{optimizer}: until it was where the others ended",
        caption="Medians over seeds. The ratio is of processor seconds.",
    )
    rows.add_column("scenario")
    rows.add_column("other")
    for heading in ("its last loss", "units", "CPU s", "its CPU s", "ratio"):
        rows.add_column(heading, justify="right")
    for lead in found:
        taken = (f"{lead.units:.4g}", f"{lead.seconds:.3g}")
        never = lead.ratio == 0
        rows.add_row(
            lead.scenario,
            lead.other,
            report.number(lead.level, report.FLOOR_X64),
            *(("never", "") if never else taken),
            f"{lead.other_seconds:.3g}",
            "" if never else f"{lead.ratio:.2f}",
        )
    return rows
