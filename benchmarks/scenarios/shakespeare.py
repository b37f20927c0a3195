"""Shakespeare, character by character: a small transformer guesses the next one."""

from functools import partial

import numpy as np

from benchmarks import datasets
from benchmarks.scenarios._base import Dataset, Scenario, split
from benchmarks.scenarios._networks import accuracy, softmax_cross_entropy
from benchmarks.scenarios._transformer import init_transformer, transformer

SYMBOLS = 84
CONTEXT, WIDTH, LAYERS, HEADS = 64, 128, 2, 4
TRAINING, HELD_OUT = 1_000_000, 100_000  # characters from the beginning and the end


def load() -> Dataset:
    text = np.array(list(datasets.text.shakespeare()))
    symbols, codes = np.unique(text, return_inverse=True)
    assert len(symbols) == SYMBOLS
    train, test = _windows(codes[:TRAINING]), _windows(codes[-HELD_OUT:])
    return split(*train, *test)


def _windows(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cuts a text into inputs and, one character ahead, targets."""
    rows = (len(codes) - 1) // CONTEXT
    return tuple(
        codes[ahead : ahead + rows * CONTEXT].reshape(rows, CONTEXT) for ahead in (0, 1)
    )


SCENARIO = Scenario(
    name="shakespeare",
    description="Shakespeare by characters, transformer with 2 layers of width 128",
    load=load,
    init=lambda seed: init_transformer(seed, SYMBOLS, CONTEXT, WIDTH, LAYERS),
    model=partial(transformer, heads=HEADS),
    loss=softmax_cross_entropy,
    metric=accuracy,
    metric_name="accuracy",
    budget=3.0,
    seeds=1,
    batch_sizes=(32,),
    terms=CONTEXT,
    full_batch=False,
    curve_examples=512,
)
