"""A small encoder-decoder transformer with layer norm before each part."""

import itertools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from benchmarks.scenarios._transformer import (  # isort: skip
    Params, affine, attention, causal, init_affine, init_block, init_embedding,
    init_norm, mlp, norm, self_attention,
)  # fmt: skip

PAD = 0  # fills up the rows of sources and targets
Drop = Callable[[jax.Array], jax.Array]


def keep(x: jax.Array) -> jax.Array:
    """No dropout."""
    return x


def dropout(key: jax.Array, rate: float) -> Drop:
    """A function that drops numbers at random, other ones at each of its calls."""
    calls = itertools.count()

    def drop(x: jax.Array) -> jax.Array:
        kept = jax.random.bernoulli(
            jax.random.fold_in(key, next(calls)), 1 - rate, x.shape
        )
        return jnp.where(kept, x / (1 - rate), 0.0)

    return drop


def init_seq2seq(
    seed: int, symbols: int, length: int, width: int, hidden: int, layers: int
) -> Params:
    """Normal weights: 0.02 for the embeddings, variance 1/fan-in for the rest.

    ``symbols`` counts those of both languages together; ``hidden`` is the width within
    the perceptrons; there are ``layers`` of the encoder, and as many of the decoder.
    """
    keys = iter(jax.random.split(jax.random.key(seed), 4 + 11 * layers))
    # Residual branches begin small, so that depth does not add up, and so do logits.
    encoder_scale, decoder_scale = ((n * layers) ** -0.5 for n in (2, 3))

    def decoder_block() -> Params:
        return init_block(keys, width, hidden, decoder_scale) | {
            "norm_memory": init_norm(width),
            "memory_queries": init_affine(next(keys), width, width),
            "memory_keys_values": init_affine(next(keys), width, 2 * width),
            "memory_out": init_affine(next(keys), width, width, decoder_scale),
        }

    return {
        "symbols": init_embedding(next(keys), symbols, width),
        "source_positions": init_embedding(next(keys), length, width),
        "target_positions": init_embedding(next(keys), length, width),
        "encoder": [
            init_block(keys, width, hidden, encoder_scale) for _ in range(layers)
        ],
        "norm_encoder": init_norm(width),
        "decoder": [decoder_block() for _ in range(layers)],
        "norm_decoder": init_norm(width),
        "out": init_affine(next(keys), width, symbols, 0.25),
    }


def seq2seq(
    params: Params, x: dict[str, jax.Array], heads: int, drop: Drop = keep
) -> jax.Array:
    """Logits of the next symbol at every position of the targets.

    ``x`` has rows of symbols under "source" and "target", padded with `PAD`. Dropout is
    applied to the embeddings and to every residual branch.
    """
    memory = encode(params, x["source"], heads, drop)
    return decode(params, memory, x["source"], x["target"], heads, drop)


def encode(
    params: Params, source: jax.Array, heads: int, drop: Drop = keep
) -> jax.Array:
    """What the decoder is told of the sources, position by position."""
    h = drop(_embed(params, "source_positions", source))
    for block in params["encoder"]:
        h = h + drop(self_attention(block, h, _real(source), heads))
        h = h + drop(mlp(block, h))
    return norm(params["norm_encoder"], h)


def decode(
    params: Params,
    memory: jax.Array,
    source: jax.Array,
    target: jax.Array,
    heads: int,
    drop: Drop = keep,
) -> jax.Array:
    """Logits of what follows each symbol of the targets."""
    # Padding comes last, so that no symbol sees any of it in what is before itself.
    past = causal(target.shape[1])
    h = drop(_embed(params, "target_positions", target))
    for block in params["decoder"]:
        h = h + drop(self_attention(block, h, past, heads))
        h = h + drop(_look_at(block, h, memory, _real(source), heads))
        h = h + drop(mlp(block, h))
    return affine(params["out"], norm(params["norm_decoder"], h))


class Beam(NamedTuple):
    """The best translations so far of each of n sentences, ``width`` of each.

    Attributes:
      targets: symbols, shape=(n, width, length + 1); the first begins a sentence.
      scores: logarithms of their probabilities, shape=(n, width).
      sizes: numbers of their symbols, with the one that ends them, shape=(n, width).
      ended: whether they have ended, bool, shape=(n, width).
    """

    targets: jax.Array
    scores: jax.Array
    sizes: jax.Array
    ended: jax.Array


def beam_search(
    params: Params,
    source: jax.Array,
    *,
    begin: int,
    end: int,
    length: int,
    heads: int,
    width: int,
    penalty: float = 0.6,
) -> jax.Array:
    r"""Translates by beam search, jittable; greedily with a width of 1.

    Translations, also those that have not ended, are ranked by their log-probability
    over :math:`((5 + k) / 6)^{\text{penalty}}`, with k their number of symbols (Wu et
    al. 2016). Every target begins with the symbol ``begin``.

    Returns:
      Rows of ``length`` symbols without ``begin``; after ``end`` comes `PAD`.
    """
    n = len(source)
    source = jnp.repeat(source, width, axis=0)
    memory = encode(params, source, heads)

    def step(beam: Beam, position: jax.Array) -> tuple[Beam, None]:
        rows = beam.targets[..., :-1].reshape(n * width, length)
        logits = decode(params, memory, source, rows, heads)[:, position]
        logs = jax.nn.log_softmax(logits).reshape(n, width, -1)
        symbols = logs.shape[-1]
        # What has ended goes on in one way, which costs nothing.
        is_pad = jnp.arange(symbols) == PAD
        logs = jnp.where(beam.ended[..., None], jnp.where(is_pad, 0, -jnp.inf), logs)
        scores = beam.scores[..., None] + logs
        sizes = jnp.where(beam.ended, beam.sizes, beam.sizes + 1)
        ranks = scores / (((5 + sizes) / 6) ** penalty)[..., None]
        _, best = jax.lax.top_k(ranks.reshape(n, -1), width)
        parents, chosen = best // symbols, best % symbols

        def of_parents(x):
            return jnp.take_along_axis(x, parents, axis=1)

        targets = jnp.take_along_axis(beam.targets, parents[..., None], axis=1)
        targets = targets.at[..., position + 1].set(chosen.astype(targets.dtype))
        return Beam(
            targets=targets,
            scores=jnp.take_along_axis(scores.reshape(n, -1), best, axis=1),
            sizes=of_parents(sizes),
            ended=of_parents(beam.ended) | (chosen == end),
        ), None

    targets = jnp.full((n, width, length + 1), PAD).at[..., 0].set(begin)
    first = Beam(
        targets=targets,
        # All begin alike: one of them goes on at first.
        scores=jnp.full((n, width), -jnp.inf).at[:, 0].set(0),
        sizes=jnp.zeros((n, width), jnp.int32),
        ended=jnp.zeros((n, width), bool),
    )
    last, _ = jax.lax.scan(step, first, jnp.arange(length))
    return last.targets[:, 0, 1:]  # the ranks of the last step are in order


def _embed(params: Params, positions: str, rows: jax.Array) -> jax.Array:
    return params["symbols"][rows] + params[positions][: rows.shape[1]]


def _real(source: jax.Array) -> jax.Array:
    """The mask that excludes padding from attention."""
    return (source != PAD)[:, None, None, :]


def _look_at(
    block: Params, x: jax.Array, memory: jax.Array, mask: jax.Array, heads: int
) -> jax.Array:
    queries = affine(block["memory_queries"], norm(block["norm_memory"], x))
    keys, values = jnp.split(affine(block["memory_keys_values"], memory), 2, axis=-1)
    return affine(block["memory_out"], attention(queries, keys, values, mask, heads))
