"""Runs of the comparison, and the table of their results."""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import ncg_optax
from benchmarks.reports.records import Record
from benchmarks.reports.scaling import table
from benchmarks.small_data import adam
from benchmarks.small_data.scores import Task, model
from benchmarks.small_data.sets import SETS, SmallSet

MARKS = ("<!-- small-data-table:begin -->", "<!-- small-data-table:end -->")


def compare(
    name: str, splits: int, epochs: int, progress: Callable[[str], None]
) -> list[Record]:
    """A record for each split of a set."""
    found = []
    for seed in range(splits):
        record = run_split(SETS[name], seed, epochs)
        found.append(record)
        losses = {k: round(v["loss"], 4) for k, v in record.items()}
        progress(f"{name}, split {seed}: {losses}")
    return found


def run_split(chosen: SmallSet, seed: int, epochs: int) -> Record:
    """One split: what each of the three ended with, on the held-out examples."""
    data = chosen.split(seed)
    task = Task(chosen.classes)
    start = chosen.init(seed, data.train["x"].shape[1])
    begin = time.perf_counter()
    fit = ncg_optax.bayesian_fit(
        model, start, data.train["y"], likelihood=task.likelihood, x=data.train["x"]
    )
    jax.block_until_ready(fit.params)
    middle = time.perf_counter()
    choice, stopped = _tuned(task, start, data.train, seed, epochs)
    again = adam.train_again(task, start, data.train, choice)
    jax.block_until_ready(again)
    end = time.perf_counter()
    outputs, std = fit.predict(x=data.held_out["x"])
    ours = {
        "seconds": middle - begin,
        "noise": float(fit.noise),
        "prior_precision": float(fit.prior_precision),
        "effective_parameters": float(fit.effective_parameters),
        "log_evidence": float(fit.log_evidence),
        "iterations": int(fit.iterations),
        "status": ncg_optax.Status(int(fit.status)).name,
    }
    if not task.classes:
        error = jnp.abs(outputs - data.held_out["y"])
        ours["within_two_std"] = float(jnp.mean(error <= 2 * std))
    return {
        "bayesian_fit": scores(task, fit.params, data.held_out) | ours,
        "adam_stopped": scores(task, stopped, data.held_out)
        | choice._asdict()
        | {"seconds": end - middle},
        "adam_again": scores(task, again, data.held_out),
    }


def _tuned(task: Task, start: Any, train: Any, seed: int, epochs: int):
    """Adam's choice by a validation fifth of the training examples."""
    order = np.random.default_rng(seed + 1000).permutation(len(train["y"]))
    held, rest = np.split(order, [round(0.2 * len(order))])
    parts = [jax.tree.map(lambda a, rows=rows: a[rows], train) for rows in (rest, held)]
    return adam.tune(task, start, *parts, epochs)


def scores(task: Task, params: Any, data: Any) -> Record:
    """The loss, and the accuracy if there are classes."""
    found = {"loss": float(task.loss(params, data))}
    if task.classes:
        right = (model(params, data["x"]) > 0) == (data["y"] > 0)
        found["accuracy"] = float(jnp.mean(right))
    return found


def markdown(record: Record) -> str:
    """The table of a stored record, and below it how it was made."""
    headings = "held-out loss", "`bayesian_fit`", "Adam, stopped early"
    headings += "Adam, trained again", "splits won", "seconds", "Adam's"
    rows = []
    for name, splits in record["sets"].items():
        ours, stopped, again = (
            np.array([split[key]["loss"] for split in splits])
            for key in ("bayesian_fit", "adam_stopped", "adam_again")
        )
        seconds = [
            f"{np.median([split[key]['seconds'] for split in splits]):.0f}"
            for key in ("bayesian_fit", "adam_stopped")
        ]
        lowest = min(ours.mean(), stopped.mean(), again.mean())
        cells = [
            f"**{x.mean():.4f}**" if x.mean() == lowest else f"{x.mean():.4f}"
            for x in (ours, stopped, again)
        ]
        won = f"{np.sum(ours <= stopped)} and {np.sum(ours <= again)} of {len(ours)}"
        rows.append((f"`{name}`", *cells, won, *seconds))
    versions = record["versions"]
    note = (
        "Means over the splits, of squared errors of standardised targets; for "
        "`wisconsin` of cross-entropies. Splits won: against both of Adam's columns. "
        f"Seconds: medians, with Adam's search and all compilation. "
        f"ncg_optax {versions['ncg_optax']}, jax {versions['jax']}."
    )
    return f"{table(headings, rows)}\n\n{note}"
