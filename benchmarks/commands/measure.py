"""The commands that measure a step: scaling, memory, precision, and so on."""

import pathlib
from typing import Annotated

import jax
import optax
import typer

from benchmarks.commands import options
from benchmarks.measurements import gpu as gpu_steps
from benchmarks.measurements import memory as memory_plans
from benchmarks.measurements import preconditioners as preconditioning
from benchmarks.measurements import product_precision
from benchmarks.reports import records
from benchmarks.reports import scaling as report
from benchmarks.scaling import measure as measuring
from benchmarks.scaling import models as networks
from benchmarks.scaling import prediction
from benchmarks.scenarios import SCENARIOS

Several = Annotated[str, typer.Option(help="Which, separated by commas.")]


def _store(
    record: records.Record,
    command: str,
    path: pathlib.Path,
    machine: records.Record | None = None,
) -> None:
    about = {
        "command": f"python -m benchmarks {command}",
        "versions": records.versions(),
        "machine": records.machine() if machine is None else machine,
    }
    typer.echo(f"Result: {records.write(about | record, path)}")


def scaling(
    devices: Annotated[
        str, typer.Option(help="Numbers of devices, the first one is the reference.")
    ] = "1,2,4",
    processes: Annotated[
        str | None,
        typer.Option(help="Instead: numbers of processes, one core each, on loopback."),
    ] = None,
    model: Annotated[str, typer.Option(help=", ".join(networks.MODELS))] = "mlp",
    optimizer: Annotated[
        str, typer.Option(help=f"Of {', '.join(networks.OPTIMIZERS)}.")
    ] = "adam,newton_cg,hessian_free",
    batch: Annotated[
        int | None,
        typer.Option(
            min=1, help="Examples on the first of them.", show_default="the model's own"
        ),
    ] = None,
    minibatch: Annotated[
        int,
        typer.Option(
            min=1,
            help=f"The same for {networks.STOCHASTIC}, and for adam beside it.",
        ),
    ] = 1024,
    strong: Annotated[
        bool, typer.Option("--strong/--no-strong", help="The same batch for all.")
    ] = True,
    weak: Annotated[
        bool, typer.Option("--weak/--no-weak", help="The same share for each.")
    ] = True,
    steps: Annotated[
        int, typer.Option(min=1, help="Steps that are timed, after some others.")
    ] = 10,
    predict: Annotated[
        bool, typer.Option("--predict", help="Measure nothing: the model's ResNet-50.")
    ] = False,
    output: options.CommittedOutput = options.COMMITTED,
) -> None:
    """Measure weak and strong scaling of a step, or predict it.

    Writes scaling_devices.json or scaling_processes.json with a figure, or
    scaling_prediction.json. Where JAX finds only a CPU the devices are fake ones, which
    share its cores: that checks that everything works, and is no timing.
    """
    options.check_output(output)
    if predict:
        record = prediction.predict()
        for name in ("strong", "weak", "variants", "checks"):
            typer.echo(f"\n{getattr(report, name)(record)}")
        _store(record, "scaling --predict", output / report.FILES["prediction"], {})
        return
    options.one_of(model, networks.MODELS, "model")
    names = options.names_of(optimizer, networks.OPTIMIZERS, "optimizer")
    option = "processes" if processes else "devices"
    counts = options.counts_of(processes or devices, f"--{option}")
    kinds = [k for k, wanted in (("strong", strong), ("weak", weak)) if wanted]
    if not kinds:
        raise options.UsageError("nothing to do with --no-strong and --no-weak.")
    chosen = networks.MODELS[model]
    runs = [
        (name, batch or chosen.batch_size)
        for name in names
        if name != networks.STOCHASTIC
    ]
    if networks.STOCHASTIC in names:  # Adam with the same batch is its reference
        runs += [
            (name, minibatch) for name in names if name in ("adam", networks.STOCHASTIC)
        ]
    with options.explained(ValueError, RuntimeError):
        points = measuring.sweep(
            model, runs, counts, kinds, steps, bool(processes), typer.echo
        )
    command = f"scaling --{option} {','.join(map(str, counts))} --model {model}"
    command += f" --optimizer {','.join(names)} --batch {batch or chosen.batch_size}"
    command += f" --minibatch {minibatch}" if networks.STOCHASTIC in names else ""
    command += "" if strong else " --no-strong"
    command += "" if weak else " --no-weak"
    record = {
        "model": model,
        "description": chosen.description,
        "weights": points[0]["weights"],
        "axis": "processes, a core each" if processes else "devices",
        "labels": measuring.labels(points),
        "points": measuring.summary(points),
    }
    path = output / report.FILES[option]
    _store(record, f"{command} --steps {steps}", path, points[0]["machine"])
    typer.echo(f"Figure: {report.plot(record, path.with_suffix('.png'))}")
    typer.echo(report.part(option, output))


def memory(
    models: Several = "mlp,cnn,transformer",
    output: options.CommittedOutput = options.COMMITTED,
) -> None:
    """Memory of a step as XLA plans it, against Adam's. Writes memory.json."""
    names = options.names_of(models, networks.MODELS, "model")
    options.check_output(output)
    found = memory_plans.measure(tuple(names), progress=typer.echo)
    command = f"memory --models {','.join(names)}"
    _store({"models": found}, command, output / report.FILES["memory"])
    typer.echo(report.part("memory", output))


def precision(
    scenarios: Several = "boston,digits_autoencoder",
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each.")] = 3,
    budget: Annotated[
        float, typer.Option(min=1, help="Gradients that a run may spend.")
    ] = 300.0,
    output: options.CommittedOutput = options.COMMITTED,
) -> None:
    """Convergence with products sent in bfloat16. Writes product_precision.json."""
    names = options.names_of(scenarios, SCENARIOS, "scenario")
    options.check_output(output)
    jax.config.update("jax_num_cpu_devices", product_precision.DEVICES)
    with options.explained(*options.UNAVAILABLE):
        found = product_precision.compare(
            names, seeds=seeds, budget=budget, progress=typer.echo
        )
    command = f"precision --scenarios {','.join(names)} --seeds {seeds}"
    command += f" --budget {budget:g}"
    _store({"comparisons": found}, command, output / report.FILES["precision"])
    typer.echo(report.part("precision", output))


def preconditioners(
    scenarios: Annotated[
        list[str] | None,
        typer.Argument(help="Scenarios of `list`.", show_default="digits_autoencoder"),
    ] = None,
    repeats: Annotated[
        int, typer.Option(min=1, help="How often every step is timed.")
    ] = 5,
    output: options.CommittedOutput = options.COMMITTED,
) -> None:
    """Measure the part of a preconditioner in a step: seconds, products, memory.

    Writes preconditioners.json. Seconds need a machine that does nothing else: where
    others compute, the threads of a decomposition wait for each other, many times
    longer than they work. `taskset -c 0` in front of the command prevents that.
    """
    names = list(dict.fromkeys(scenarios or ["digits_autoencoder"]))
    chosen = [SCENARIOS[options.one_of(name, SCENARIOS, "scenario")] for name in names]
    options.check_output(output)
    found: dict[str, records.Record] = {}
    for item in chosen:
        with jax.enable_x64(item.x64), options.explained(*options.UNAVAILABLE):
            data = item.load().train
            measured = preconditioning.measure(item, data, repeats, typer.echo)
            parameters = optax.tree.size(item.init(0))
        title = f"{item.name}, {parameters} parameters, {len(data['y'])} examples"
        typer.echo(preconditioning.tables(title, measured))
        found[item.name] = {
            "parameters": parameters,
            "examples": len(data["y"]),
            "preconditioners": preconditioning.as_record(measured),
        }
    command = f"preconditioners {' '.join(names)} --repeats {repeats}"
    _store({"scenarios": found}, command, output / "preconditioners.json")


def gpu(
    budget: Annotated[
        float, typer.Option(min=0, help="Seconds, with those of compiling.")
    ] = gpu_steps.BUDGET,
    small: Annotated[
        bool,
        typer.Option("--small", help="A dry run of tiny shapes: gpu_small.json."),
    ] = False,
    output: options.CommittedOutput = options.COMMITTED,
) -> None:
    """Time steps on one GPU, within a budget of seconds. Writes gpu.json.

    Four optimizers on the MNIST autoencoder, a transformer and ResNet-50, with made-up
    data; the preconditioner's share, TF32 against full precision, peaks of memory. What
    there is no time left for is skipped, and the file says so. Programs that JAX keeps
    on disk (JAX_COMPILATION_CACHE_DIR) need not be compiled again.
    """
    options.check_output(output)
    if not small and gpu_steps.backend() == "cpu":
        raise options.UsageError("JAX finds no GPU here; --small tries it on a CPU.")
    found = gpu_steps.measure(gpu_steps.parts(small), budget, typer.echo)
    command = f"gpu --budget {budget:g}{' --small' if small else ''}"
    path = output / ("gpu_small.json" if small else report.FILES["gpu"])
    _store(found, command, path, found["machine"])
    typer.echo(report.gpu(found | {"command": f"python -m benchmarks {command}"}))
