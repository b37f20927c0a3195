"""The commands around scaling: scaling, memory, precision."""

import pathlib
from typing import Annotated

import typer

from benchmarks.reports import scaling as scaling_report
from benchmarks.reports.records import Record

Output = Annotated[
    pathlib.Path,
    typer.Option(
        metavar="DIR",
        help="Where the result is written.",
        show_default="benchmarks/results",
    ),
]


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    app.command()(scaling)
    app.command()(memory)
    app.command()(precision)


def _names(text: str, known: tuple[str, ...], what: str) -> list[str]:
    names = list(dict.fromkeys(name.strip() for name in text.split(",")))
    for name in names:
        if name not in known:
            raise typer.BadParameter(
                f"no {what} {name!r}; there are {', '.join(known)}."
            )
    return names


def _counts(text: str, option: str) -> list[int]:
    """Numbers in increasing order."""
    try:
        counts = sorted({int(part) for part in text.split(",")})
    except ValueError:
        counts = [0]
    if counts[0] < 1:
        raise typer.BadParameter(
            f"{option}: expected positive whole numbers, such as 1,2,4, got {text!r}."
        )
    return counts


def _stored(record: Record, command: str, path: pathlib.Path, machine: Record) -> None:
    from benchmarks.reports import records

    record = {
        "command": f"python -m benchmarks {command}",
        "versions": records.versions(),
        "machine": machine,
    } | record
    typer.echo(f"Result: {records.write(record, path)}")


def scaling(
    devices: Annotated[
        str,
        typer.Option(help="Numbers of devices, the first one is the reference."),
    ] = "1,2,4",
    processes: Annotated[
        str | None,
        typer.Option(
            help="Instead: numbers of processes with one core each, over loopback."
        ),
    ] = None,
    model: Annotated[
        str, typer.Option(help="mlp, cnn, transformer, resnet50.")
    ] = "mlp",
    optimizer: Annotated[
        str, typer.Option(help="Which, separated by commas.")
    ] = "adam,newton_cg,hessian_free",
    batch: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Examples on the first number of devices.",
            show_default="the model's own",
        ),
    ] = None,
    strong: Annotated[
        bool, typer.Option("--strong/--no-strong", help="The same batch for all.")
    ] = True,
    weak: Annotated[
        bool, typer.Option("--weak/--no-weak", help="The same share for each.")
    ] = True,
    steps: Annotated[
        int, typer.Option(min=1, help="Steps that are timed, after five others.")
    ] = 10,
    predict: Annotated[
        bool,
        typer.Option("--predict", help="Measure nothing: the model's ResNet-50."),
    ] = False,
    output: Output = scaling_report.RESULTS,
) -> None:
    """Measure weak and strong scaling of a step, or predict it.

    Writes scaling_devices.json or scaling_processes.json with a figure, or
    scaling_prediction.json. Where JAX finds only a CPU the devices are fake ones, which
    share its cores: that checks that everything works, and is no timing.
    """
    from benchmarks.scaling import measure as measuring
    from benchmarks.scaling import models as scaling_models
    from benchmarks.scaling import prediction as scaling_prediction

    if predict:
        record = scaling_prediction.predict()
        for name in ("strong", "weak", "variants", "checks"):
            typer.echo(f"\n{getattr(scaling_report, name)(record)}")
        path = output / scaling_report.FILES["prediction"]
        _stored(record, "scaling --predict", path, {})
        return
    (name,) = _names(model, tuple(scaling_models.MODELS), "model")
    names = _names(optimizer, scaling_models.OPTIMIZERS, "optimizer")
    option = "--processes" if processes else "--devices"
    counts = _counts(processes or devices, option)
    kinds = [k for k, wanted in (("strong", strong), ("weak", weak)) if wanted]
    if not kinds:
        raise typer.BadParameter("nothing to do with --no-strong and --no-weak.")
    chosen = scaling_models.MODELS[name]
    size = batch or chosen.batch_size
    try:
        points = measuring.sweep(
            name, names, counts, size, kinds, steps, bool(processes), typer.echo
        )
    except (ValueError, RuntimeError) as error:
        raise typer.BadParameter(str(error)) from error
    command = f"scaling {option} {','.join(map(str, counts))} --model {name}"
    command += f" --optimizer {','.join(names)} --batch {size}"
    command += "" if strong else " --no-strong"
    command += "" if weak else " --no-weak"
    record = {
        "model": name,
        "description": chosen.description,
        "weights": points[0]["weights"],
        "axis": "processes, a core each" if processes else "devices",
        "labels": measuring.labels(points),
        "points": measuring.summary(points),
    }
    stem = "processes" if processes else "devices"
    path = output / scaling_report.FILES[stem]
    _stored(record, f"{command} --steps {steps}", path, points[0]["machine"])
    typer.echo(f"Figure: {scaling_report.plot(record, path.with_suffix('.png'))}")
    typer.echo(scaling_report.part(stem, output))


def memory(
    models: Annotated[
        str, typer.Option(help="Which, separated by commas.")
    ] = "mlp,cnn,transformer",
    output: Output = scaling_report.RESULTS,
) -> None:
    """Memory of a step as XLA plans it, against Adam's. Writes memory.json."""
    from benchmarks.measurements import memory as planning
    from benchmarks.reports import records
    from benchmarks.scaling import models as scaling_models

    names = _names(models, tuple(scaling_models.MODELS), "model")
    found = planning.measure(tuple(names), progress=typer.echo)
    path = output / scaling_report.FILES["memory"]
    command = f"memory --models {','.join(names)}"
    _stored({"models": found}, command, path, records.machine())
    typer.echo(scaling_report.part("memory", output))


def precision(
    scenarios: Annotated[
        str, typer.Option(help="Which, separated by commas.")
    ] = "boston,digits_autoencoder",
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each.")] = 3,
    budget: Annotated[
        float, typer.Option(min=1, help="Gradients that a run may spend.")
    ] = 300.0,
    output: Output = scaling_report.RESULTS,
) -> None:
    """Convergence with products sent in bfloat16. Writes product_precision.json."""
    from benchmarks.measurements import product_precision
    from benchmarks.reports import records
    from benchmarks.scenarios import SCENARIOS

    names = _names(scenarios, tuple(SCENARIOS), "scenario")
    product_precision.use_fake_devices()
    try:
        found = product_precision.compare(
            names, seeds=seeds, budget=budget, progress=typer.echo
        )
    except (FileNotFoundError, ModuleNotFoundError) as error:
        raise typer.BadParameter(str(error)) from error
    path = output / scaling_report.FILES["precision"]
    command = f"precision --scenarios {','.join(names)} --seeds {seeds}"
    command += f" --budget {budget:g}"
    _stored({"comparisons": found}, command, path, records.machine())
    typer.echo(scaling_report.part("precision", output))
