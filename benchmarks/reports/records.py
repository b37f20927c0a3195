"""Results as JSON: what was run, on what, and every curve. One file per competitor."""

import json
import math
import os
import pathlib
import platform
import re
from collections.abc import Callable
from importlib import metadata
from statistics import median
from typing import Any

import jax

import ncg_optax
from benchmarks.training.resume import write_atomically
from benchmarks.training.run import Run
from benchmarks.training.tuning import Tuned

Record = dict[str, Any]
PACKAGES = (
    "ncg_optax", "jax", "jaxlib", "optax", "numpy", "scikit-learn", "mlxtend",
    "kfac-jax", "flax", "pillow",
)  # fmt: skip

NOT_INSTALLED = "not installed"


def machine() -> dict[str, Any]:
    """What kind of machine this is. Never its name, its user or a path."""
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "platform": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "device": jax.devices()[0].device_kind,
    }


def versions() -> dict[str, str]:
    """Versions of the packages that can change a result."""
    return {name: version(name) for name in PACKAGES}


def version(name: str) -> str:
    if name == "ncg_optax":
        # Of the code that runs: an editable installation keeps its first number.
        return ncg_optax.__version__
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return NOT_INSTALLED


def _cpu_model() -> str:
    info = pathlib.Path("/proc/cpuinfo")
    if info.exists():
        match = re.search(r"model name\s*:\s*(.+)", info.read_text())
        if match:
            return match[1].strip()
    return platform.processor() or "unknown"


def grid(tuned: Tuned | None) -> list[Record]:
    """The tuning grid, the winner marked."""
    return [
        {
            "batch": trial.setting.batch,
            "schedule": trial.setting.schedule,
            "learning_rate": trial.setting.learning_rate,
            "loss": trial.loss,
            "validation_loss": trial.validation_loss,
            "winner": trial is tuned.best,
        }
        for trial in (tuned.trials if tuned else [])
    ]


def as_record(run: Run) -> Record:
    """A run as plain lists and numbers."""
    return {
        "seed": run.seed,
        "loss": run.loss,
        "held_out_loss": run.held_out_loss,
        "held_out_metric": run.held_out_metric,
        "validated": run.validated and run.validated._asdict(),
        "curve": run.curve._asdict(),
    }


def spread(
    record: Record, pick: Callable[[Record], float | None]
) -> tuple[float, float, float]:
    """Median, smallest and largest of a number over the runs of a record."""
    values = [math.inf if v is None else v for v in map(pick, record["runs"])]
    return median(values), min(values), max(values)


def save(record: Record, directory: pathlib.Path) -> pathlib.Path:
    """Writes ``DIRECTORY/SCENARIO/OPTIMIZER.json``."""
    path = directory / record["scenario"] / f"{record['optimizer']}.json"
    return write(record, path)


def write(record: Record, path: pathlib.Path) -> pathlib.Path:
    """Writes a file, and the folders above it."""
    text = json.dumps(_clean(record), indent=1, allow_nan=False, ensure_ascii=False)
    # A number per line would make files of thousands of lines: one list, one line.
    text = re.sub(r"\[[^\[\]{}]*\]", lambda m: " ".join(m[0].split()), text)
    write_atomically(path, text + "\n")
    return path


def load(path: pathlib.Path) -> Record:
    """Reads a file that `save` wrote.

    Raises:
        ValueError: if it is something else.
    """
    try:
        record = json.loads(path.read_text(encoding="utf8"))
        record["scenario"], record["optimizer"], record["runs"][0]["curve"]["loss"]
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise ValueError(f"{path} is not a result of `benchmarks run`.") from error
    return record


def load_all(directory: pathlib.Path, scenario: str = "*") -> list[Record]:
    """Every stored result of a directory, in a stable order."""
    return [load(path) for path in sorted(directory.glob(f"{scenario}/*.json"))]


def _clean(value: Any) -> Any:
    """Rounds to six digits; what is not finite becomes null, which JSON has."""
    if isinstance(value, dict):
        return {key: _clean(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value
