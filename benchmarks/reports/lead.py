"""How much earlier an optimizer was where another one ended."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from rich.table import Table

from benchmarks.reports import tables
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
        """How many times less processor time it took; 0 if it never got there."""
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
    headings = ("its last loss", "units", "CPU s", "its CPU s", "ratio")
    rows = tables.make_table(
        ("scenario", "other", *headings),
        left=2,
        title=f"{optimizer}: until its loss was as low as the last one of the others",
        caption="Medians over seeds. The ratio is of processor seconds.",
    )
    for lead in found:
        taken = (f"{lead.units:.4g}", f"{lead.seconds:.3g}")
        never = lead.ratio == 0
        rows.add_row(
            lead.scenario,
            lead.other,
            tables.number(lead.level, tables.FLOOR_X64),
            *(("never", "") if never else taken),
            f"{lead.other_seconds:.3g}",
            "" if never else f"{lead.ratio:.2f}",
        )
    return rows
