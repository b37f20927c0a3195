"""The command that trains one network and keeps its parameters."""

import pathlib
from typing import Annotated, Any

import jax
import typer

from benchmarks import zoo
from benchmarks.commands import options
from benchmarks.peers import COMPETITORS, Problem
from benchmarks.reports import records, tables
from benchmarks.scenarios import SCENARIOS, Dataset
from benchmarks.training import run as training
from benchmarks.zoo.entries import stored_result


def train(
    scenario: Annotated[
        str, typer.Argument(help="A scenario of `list`.", show_default=False)
    ],
    optimizer: Annotated[str, typer.Option(help="An optimizer of `list`.")],
    checkpoint: Annotated[
        pathlib.Path,
        typer.Option(
            metavar="DIR", help="Writes DIR/SCENARIO/OPTIMIZER.", show_default="zoo"
        ),
    ] = pathlib.Path("zoo"),
    seed: Annotated[int, typer.Option(min=0, help="Of the initial parameters.")] = 0,
    budget: Annotated[float | None, options.budget("that of the stored result")] = None,
) -> None:
    """Train once, and save a checkpoint with a card.

    A tuned optimizer has the setting that won in the stored results. Writes params/, an
    orbax checkpoint, and card.json: scenario, data, optimizer, setting, losses, scores,
    versions, machine, and the SHA-256 of the parameters. `zoo` shows what there is.
    """
    item = SCENARIOS[options.one_of(scenario, SCENARIOS, "scenario")]
    competitor = COMPETITORS[options.one_of(optimizer, COMPETITORS, "optimizer")]
    options.positive(budget)
    options.check_output(checkpoint, "--checkpoint")
    if not competitor.fits(item):
        raise options.UsageError(f"{scenario} is not for {optimizer}.")
    with jax.enable_x64(item.x64), options.explained(*options.UNAVAILABLE):
        setting = zoo.setting_of(scenario, optimizer, options.COMMITTED)
        if budget is None:
            stored = stored_result(scenario, optimizer, options.COMMITTED) or {}
            budget = stored.get("budget", item.budget)
        data = item.load()
        problem = Problem(item, data.train, data.held_out, budget)
        compiled = training.compile_method(competitor.build(problem, setting), problem)
        rate = setting.learning_rate if setting else 0.0
        found = training.train(compiled, problem, seed, rate)
        command = f"python -m benchmarks train {scenario} --optimizer {optimizer}"
        command += f" --seed {seed} --budget {budget:g}"
        about = {
            "command": command,
            "setting": str(setting or "none needed"),
            "compile_seconds": compiled.seconds,
        }
        folder = checkpoint / scenario / optimizer
        zoo.save(found.params, card(problem, optimizer, data, found) | about, folder)
    typer.echo(
        f"Held-out {item.metric_name}: {tables.number(found.held_out_metric)}, "
        f"training loss: {tables.number(found.loss)}\nCheckpoint: {folder}"
    )


def card(
    problem: Problem, optimizer: str, data: Dataset, run: training.Run
) -> dict[str, Any]:
    """What is known of trained parameters."""
    scenario, curve = problem.scenario, run.curve
    return {
        "scenario": scenario.name,
        "description": scenario.description,
        "data": data.note,
        "examples": {"train": problem.examples, "held_out": len(data.held_out["y"])},
        "optimizer": optimizer,
        "seed": run.seed,
        "budget": problem.budget,
        "steps": curve.steps[-1],
        "units": curve.units[-1],
        "wall_seconds": curve.wall_seconds[-1],
        "loss": run.loss,
        "held_out_loss": run.held_out_loss,
        "metric": scenario.metric_name,
        "held_out_metric": run.held_out_metric,
        "validated": run.validated and run.validated._asdict(),
        "x64": scenario.x64,
        "versions": records.versions(),
        "machine": records.machine(),
    }
