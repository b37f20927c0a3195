"""The poster's last row: ResNet-50 on 1 to 8 GPUs, beside what is stored of ours."""

import json
import pathlib
from typing import Any, NamedTuple

from benchmarks.reports.scaling import FILES, RESULTS
from benchmarks.scaling.prediction import POSTER_DEVICES, POSTER_SECONDS

BATCH = 512  # the poster's


class Scaling(NamedTuple):
    """Strong scaling: the same batch on more and more devices."""

    what: str  # was done, by which optimizer
    where: str  # model, batch and hardware, in words
    # by the number of devices, the lowest and the highest estimate. Empty if there is
    # no timing.
    efficiency: dict[int, tuple[float, float]]
    measured: bool = True  # whether it was measured, and not predicted

    def efficiency_text(self, devices: int) -> str:
        """Percent, or nothing."""
        if devices not in self.efficiency:
            return ""
        low, high = (f"{100 * value:.0f}" for value in self.efficiency[devices])
        return f"{low} %" if low == high else f"{low} – {high} %"


def poster() -> Scaling:
    """The poster's own measurement."""
    first = POSTER_SECONDS[0]
    pairs = zip(POSTER_DEVICES, POSTER_SECONDS, strict=True)
    found = {devices: first / (devices * seconds) for devices, seconds in pairs}
    seconds = ", ".join(f"{value:g}" for value in POSTER_SECONDS)
    return Scaling(
        "the poster, measured",
        f"ResNet-50, batch {BATCH}, A100 GPUs; {seconds} s an epoch",
        {devices: (value, value) for devices, value in found.items()},
    )


def measured(record: dict[str, Any]) -> list[Scaling]:
    """What `python -m benchmarks scaling` stored, its strong scaling."""
    points = [point for point in record["points"] if point["scaling"] == "strong"]
    if not points:
        return []
    names = list(dict.fromkeys(point["optimizer"] for point in points))
    machine = record["machine"]

    where = (
        f"{record['description']}; {record['axis']}: {machine['device']}, "
        f"{machine['cpu']}, {machine['cores']} cores"
    )
    if record["labels"]:  # why the seconds mean nothing
        counts = sorted({point["devices"] for point in points})
        ran = f"{', '.join(names)} ran on {', '.join(map(str, counts))}"
        what = f"{ran}: {'; '.join(record['labels'])}"
        return [Scaling(what, f"batch {points[0]['batch']}; {where}", {})]
    found: dict[str, dict[int, tuple[float, float]]] = {}
    for point in points:
        what = f"{point['optimizer']}, batch {point['batch']}, measured"
        of_run = found.setdefault(what, {})
        of_run[point["devices"]] = (point["efficiency"],) * 2
    return [Scaling(what, where, efficiency) for what, efficiency in found.items()]


def predicted(record: dict[str, Any]) -> list[Scaling]:
    """What the cost model says of the poster's model, batch and hardware."""
    found = {}
    for row in record["strong"]:
        if row["batch"] == BATCH:
            of_recipe = found.setdefault(row["recipe"], {})
            low, high = (row["efficiency"][key] for key in ("published", "a quarter"))
            of_recipe[row["devices"]] = low, high
    where = f"ResNet-50, batch {BATCH}, A100 GPUs; a cost model, nothing measured"
    return [
        Scaling(f"{recipe}, predicted", where, efficiency, measured=False)
        for recipe, efficiency in found.items()
    ]


def stored(results: pathlib.Path = RESULTS) -> list[Scaling]:
    """The poster's row and ours, as far as it is stored."""
    readers = {"devices": measured, "processes": measured, "prediction": predicted}
    found = [poster()]
    for name, read in readers.items():
        path = results / FILES[name]
        if path.exists():
            found += read(json.loads(path.read_text(encoding="utf8")))
    return found
