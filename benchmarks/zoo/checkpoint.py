"""A checkpoint: parameters, kept by orbax, and a card of JSON beside them."""

import hashlib
import json
import pathlib
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.reports import records
from benchmarks.scenarios import SCENARIOS
from benchmarks.scenarios._base import Params

CARD, PARAMS = "card.json", "params"
Card = dict[str, Any]


def digest(params: Params) -> str:
    """The SHA-256 of parameters: of names, types, shapes and numbers of all arrays."""
    found = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        array = np.asarray(leaf)
        name = jax.tree_util.keystr(path)
        found.update(f"{name} {array.dtype} {array.shape}\n".encode())
        # The same bytes on every machine.
        found.update(array.astype(array.dtype.newbyteorder("<")).tobytes())
    return found.hexdigest()


def save(params: Params, card: Card, folder: pathlib.Path) -> Card:
    """Writes ``FOLDER/params`` and ``FOLDER/card.json``, in place of older ones.

    The card comes last: a folder without one holds nothing that is whole.

    Returns:
        The card with the number of parameters and their SHA-256.
    """
    import orbax.checkpoint as orbax

    (folder / CARD).unlink(missing_ok=True)
    shutil.rmtree(folder / PARAMS, ignore_errors=True)
    arrays = jax.tree.map(np.asarray, params)
    with orbax.StandardCheckpointer() as checkpointer:
        checkpointer.save((folder / PARAMS).absolute(), arrays)
    size = sum(leaf.size for leaf in jax.tree.leaves(arrays))
    card = card | {"parameters": size, "sha256": digest(params)}
    records.write(card, folder / CARD)
    return card


def read_card(folder: pathlib.Path) -> Card:
    """The card of a checkpoint.

    Raises:
        ValueError: if there is none, or the file is something else.
    """
    try:
        card = json.loads((folder / CARD).read_text(encoding="utf8"))
        card["scenario"], card["optimizer"], card["sha256"], card["held_out_metric"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{folder} has no card of a checkpoint: `benchmarks train` writes one."
        ) from error
    return card


def load(folder: pathlib.Path) -> tuple[Params, Card]:
    """The parameters of a checkpoint, and its card.

    Raises:
        ValueError: if there is no card, its scenario is unknown, or the parameters are
            not those that the card was written for.
    """
    import orbax.checkpoint as orbax

    card = read_card(folder)
    if card["scenario"] not in SCENARIOS:
        raise ValueError(f"{folder}: there is no scenario {card['scenario']!r}.")
    scenario = SCENARIOS[card["scenario"]]
    with jax.enable_x64(scenario.x64):
        expected = jax.eval_shape(scenario.init, 0)
        blank = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), expected)
        try:
            with orbax.StandardCheckpointer() as checkpointer:
                stored = checkpointer.restore((folder / PARAMS).absolute(), blank)
        # Orbax has many errors for a file that is damaged or missing.
        except Exception as error:
            raise ValueError(f"the parameters in {folder} cannot be read.") from error
        if digest(stored) != card["sha256"]:
            raise ValueError(
                f"the parameters in {folder} have another SHA-256 than its card says."
            )
        return jax.tree.map(jnp.asarray, stored), card
