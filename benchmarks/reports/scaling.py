"""Tables of the pages on scaling and on GPUs, and a figure, from stored results.

The page of the documentation and the command line show the same text. Nothing but the
standard library is needed, apart from the figure.
"""

import json
import pathlib
import statistics
from collections.abc import Callable, Iterable
from typing import Any

RESULTS = pathlib.Path(__file__).parent.parent / "results"
FILES = {
    "devices": "scaling_devices.json",
    "processes": "scaling_processes.json",
    "prediction": "scaling_prediction.json",
    "memory": "memory.json",
    "precision": "product_precision.json",
    "gpu": "gpu.json",
}
MARKERS = ("o", "s", "^", "D")
COLOURS = ("#009E73", "#D55E00", "#0072B2", "#E69F00")
NAMES = {"overhead": "small shares"} | {
    name: name for name in ("bandwidth", "latency", "vectors", "preconditioner")
}


def table(headings: Iterable[str], rows: Iterable[Iterable[str]], left: int = 1) -> str:
    """A Markdown table, the first columns to the left."""
    headings = list(headings)
    rule = "".join("---|" if i < left else "--:|" for i in range(len(headings)))
    # A bar within a cell would end it.
    lines = [[cell.replace("|", "\\|") for cell in row] for row in (headings, *rows)]
    text = ["| " + " | ".join(line) + " |" for line in lines]
    return "\n".join([text[0], "|" + rule, *text[1:]])


def percent(value: float) -> str:
    """A share in percent."""
    return f"{100 * value:.0f} %"


def size(count: float) -> str:
    """Bytes, readable."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:.{1 if count < 10 * factor else 0}f} {unit}"
    return f"{count:.0f}"


def duration(seconds: float) -> str:
    """Seconds, three digits."""
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"


def measured(record: dict[str, Any]) -> str:
    """The measurements of `scaling`: a table, and a note on how they were made.

    What is no timing is shown without its seconds, which mean nothing.
    """

    def columns(point: dict[str, Any]) -> dict[str, str]:
        found = {n: str(point[n]) for n in ("optimizer", "scaling", "devices", "batch")}
        if not record["labels"]:
            found |= {
                "step": duration(point["seconds"]),
                "examples/s": f"{point['throughput']:.3g}",
                "speed-up": f"{point['speedup']:.2f}",
                "efficiency": percent(point["efficiency"]),
            }
        return found | {
            "gradients": f"{point['gradient_equivalents']:.1f}",
            "products": f"{point['products']:.1f}",
            "averaged": size(point["bytes"]),
            "loss": f"{point['loss']:.4g}",
        }

    rows = [columns(point) for point in record["points"]]
    machine = record["machine"]
    note = (
        f"{record['description']}, {record['weights']:,} weights; "
        f"{machine['cpu']}, {machine['cores']} cores, device: {machine['device']}. "
        f"`{record['command']}`"
    )
    warnings = [f"**Note: {label}.**" for label in record["labels"]]
    shown = table(rows[0], (row.values() for row in rows), left=2)
    return "\n\n".join([*warnings, shown, note])


def _range(row: dict[str, Any]) -> str:
    """The efficiency with the published overhead and with a quarter of it."""
    low, high = (row["efficiency"][name] for name in ("published", "a quarter"))
    return f"{100 * low:.0f} – {100 * high:.0f} %"


def headline(record: dict[str, Any]) -> str:
    """Eight devices, a batch of 512 or the mini-batch's, beside the poster."""
    found = {
        row["recipe"]: row
        for row in [*record["strong"], *record["variants"]]
        if row["devices"] == 8 and row["batch"] <= 1024
    }
    rows = [("poster, *measured*", f"{100 * record['poster']['efficiency']:.1f} %", "")]
    for name, row in found.items():
        if name != "as it comes":
            variant = name != "hessian_free" and row in record["variants"]
            title = f"hessian_free, {name}" if variant else name
            title += "" if row["batch"] == 512 else f", batch {row['batch']}"
            rows.append((title, _range(row), duration(row["seconds"])))
    return table(("optimizer", "efficiency", "step"), rows)


def strong(record: dict[str, Any]) -> str:
    """The predicted strong scaling."""
    rows = [
        (
            *_place(row),
            *(percent(row["efficiency"][name]) for name in ("published", "a quarter")),
            duration(row["seconds"]),
            NAMES[row["limit"]],
            *(percent(row["parts"][name]) for name in NAMES),
        )
        for row in record["strong"]
    ]
    headings = (
        "optimizer", "devices", "batch", "efficiency", "with a quarter of the overhead",
        "step", "limit", *NAMES.values(),
    )  # fmt: skip
    return table(headings, rows)


def weak(record: dict[str, Any]) -> str:
    """The predicted weak scaling."""
    rows = [
        (*_place(row), percent(row["efficiency"]), duration(row["seconds"]))
        for row in record["weak"]
    ]
    return table(("optimizer", "devices", "batch", "efficiency", "step"), rows)


def _place(row: dict[str, Any]) -> tuple[str, str, str]:
    return row["recipe"], str(row["devices"]), f"{row['batch']:,}"


def variants(record: dict[str, Any]) -> str:
    """The efficiency of hessian_free with one setting changed at a time."""
    by_name: dict[str, dict[tuple[int, int], Any]] = {}
    for row in record["variants"]:
        by_name.setdefault(row["recipe"], {})[row["batch"], row["devices"]] = row
    first = next(iter(by_name.values()))
    rows = [
        (name, *(f"{_range(r)}, {duration(r['seconds'])}" for r in found.values()))
        for name, found in by_name.items()
    ]
    slower = (f"{percent(row['half_network'])} at least" for row in first.values())
    rows.append(("every all-reduce twice as slow", *slower))
    headings = ("hessian_free", *(f"{n} devices, batch {b:,}" for b, n in first))
    return table(headings, rows)


def checks(record: dict[str, Any]) -> str:
    """The model against published measurements that it was not made from."""
    rows = [
        (name, f"{pair['model']:.3g}", f"{pair['published']:.3g}")
        for name, pair in record["checks"].items()
    ]
    return table(("", "model", "published"), rows)


def sources(record: dict[str, Any]) -> str:
    """Where the numbers of the machine come from."""

    def named(where: str) -> str:
        return f"<{where}>" if where.startswith("http") else where

    return "\n".join(
        f"- {what}: {named(where)}" for where, what in record["sources"].items()
    )


def memory(record: dict[str, Any]) -> str:
    """Memory of a step."""
    rows = [
        (
            f"{name}, batch {model['batch']}",
            title.replace("in pieces", f"{model['piece']} at a time"),
            size(plan["parameters"]),
            f"{plan['state'] / plan['parameters']:.1f}",
            size(plan["temporary"]),
            size(plan["peak"]),
            f"{plan['peak'] / model['plans']['adam']['peak']:.2f}",
        )
        for name, model in record["models"].items()
        for title, plan in model["plans"].items()
    ]
    headings = (
        "model", "optimizer", "parameters", "state, in parameters", "temporary", "peak",
        "over Adam's",
    )  # fmt: skip
    return table(headings, rows, left=2)


def precision(record: dict[str, Any]) -> str:
    """Final losses with products in both precisions."""
    cells: dict[tuple[str, str], dict[str, list[float]]] = {}
    for row in record["comparisons"]:
        key = row["scenario"], row["optimizer"]
        losses = [run["loss"] for run in row["runs"]]
        cells.setdefault(key, {})[row["product_dtype"]] = losses

    def cell(losses: list[float]) -> str:
        middle = statistics.median(losses)
        return f"{middle:.4g} ({min(losses):.4g} – {max(losses):.4g})"

    rows = [
        (*key, *(cell(found[dtype]) for dtype in ("float32", "bfloat16")))
        for key, found in cells.items()
    ]
    return table(("problem", "optimizer", "float32", "bfloat16"), rows, left=2)


def gpu(record: dict[str, Any]) -> str:
    """Steps on one GPU: a table for each model, and what TF32 does."""
    by_model: dict[str, dict[str, Any]] = {}
    for part in record["parts"]:
        by_model.setdefault(part["description"], {})[part["optimizer"]] = part
    headings = (
        "optimizer", "batch", "step", "gradients", "own share", "peak", "compiling",
    )  # fmt: skip
    found = []
    for description, parts in by_model.items():
        rows = table(headings, map(_gpu_row, parts.values()))
        found += [f"{description[0].upper()}{description[1:]}:", rows]
        pair = [parts.get(f"hessian_free{end}", {}) for end in ("_tf32", "")]
        if all("losses" in part for part in pair):
            last = min(len(part["losses"]) for part in pair) - 1
            low, high = (f"{part['losses'][last]:.5g}" for part in pair)
            found.append(f"Loss after {last} steps: {low} in TF32, {high} in float32.")
    device = record["machine"].get("device", "nothing ran")
    found.append(f"Made-up data, {device}, {record['seconds']:.0f} s in all.")
    return "\n\n".join([*found, f"`{record['command']}`"])


def _gpu_row(part: dict[str, Any]) -> list[str]:
    name = [part["optimizer"], str(part["batch"])]
    if "seconds" not in part:
        return [*name, part["status"], *4 * [""]]
    share, peak = part["preconditioner_share"], part["peak_bytes"]
    return [
        *name,
        duration(part["seconds"]) + ("" if part["complete"] else " (cut short)"),
        f"{part['gradient_equivalents']:.1f}",
        "" if share is None else percent(share),
        "" if peak is None else size(peak),
        duration(part["compile_seconds"]),
    ]


_PREDICTED = (headline, strong, weak, variants, checks, sources)
PARTS: dict[str, tuple[str, Callable[[dict[str, Any]], str]]] = {
    "devices": ("devices", measured),
    "processes": ("processes", measured),
    **{write.__name__: ("prediction", write) for write in _PREDICTED},
    "memory": ("memory", memory),
    "precision": ("precision", precision),
    "gpu": ("gpu", gpu),
}


def part(name: str, results: pathlib.Path = RESULTS) -> str:
    """One of `PARTS`, from stored results.

    Raises:
        ValueError: if there is no such part.
    """
    if name not in PARTS:
        raise ValueError(f"name must be one of {', '.join(PARTS)}, got {name!r}.")
    stem, write = PARTS[name]
    path = results / FILES[stem]
    if not path.exists():
        return "*Not measured yet.*"
    record = json.loads(path.read_text(encoding="utf8"))
    text, figure = write(record), path.with_suffix(".png")
    if figure.exists() and not record.get("labels"):
        text += f"\n\n![Throughput and efficiency](benchmarks/results/{figure.name})"
    return text


def plot(record: dict[str, Any], path: pathlib.Path) -> pathlib.Path:
    """Draws throughput over the reference's, and efficiency, against devices."""
    from benchmarks.reports import figures

    points = record["points"]
    counts = sorted({point["devices"] for point in points})
    figure, (left, right) = figures.plt.subplots(
        1, 2, figsize=(9, 4), layout="constrained"
    )
    ideal = [count / counts[0] for count in counts]
    left.plot(counts, ideal, color="#444444", ls=":", label="ideal")
    right.axhline(1.0, color="#444444", ls=":")
    runs = dict.fromkeys((p["optimizer"], p["reference_batch"]) for p in points)
    for index, (name, batch) in enumerate(runs):
        style = {"color": COLOURS[index % 4], "marker": MARKERS[index % 4]}
        for scaling, dashes in (("strong", "-"), ("weak", "--")):
            kind = {
                "optimizer": name,
                "reference_batch": batch,
                "scaling": scaling,
            }.items()
            line = [point for point in points if kind <= point.items()]
            if not line:
                continue
            x, style["ls"] = [point["devices"] for point in line], dashes
            label = f"{name}, batch {batch}, {scaling}"
            left.plot(x, [point["speedup"] for point in line], label=label, **style)
            right.plot(x, [point["efficiency"] for point in line], **style)
    left.set_ylabel("throughput over the reference's")
    right.set_ylabel("parallel efficiency")
    highest = max(point["efficiency"] for point in points)
    right.set_ylim(0, max(1.15, 1.1 * highest))
    for axis in (left, right):
        axis.set(xlabel=record["axis"], xticks=counts)
        axis.grid(color="#e4e4e4", linewidth=0.8)
        figures.open_frame(axis)
    title = "; ".join([record["description"], *record["labels"]])
    figure.suptitle(title, fontsize=10)
    style = {"loc": "outside lower center", "frameon": False, "fontsize": 8}
    figure.legend(*left.get_legend_handles_labels(), ncols=3, **style)
    return figures.save(figure, path)
