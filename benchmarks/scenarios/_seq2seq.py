"""A small encoder-decoder transformer with layer norm before each part."""

import itertools
from collections.abc import Callable

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


def greedy(
    params: Params, source: jax.Array, begin: int, length: int, heads: int
) -> jax.Array:
    """Translates by taking the most probable symbol at every position, jittable.

    Every target begins with the symbol ``begin``. Returns rows of ``length`` symbols
    without it; their ends are not marked.
    """
    memory = encode(params, source, heads)
    first = jnp.full((len(source), length), PAD).at[:, 0].set(begin)

    def step(target: jax.Array, position: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits = decode(params, memory, source, target, heads)
        best = jnp.argmax(logits[:, position], axis=-1).astype(target.dtype)
        # There is no place after the last one: JAX leaves that write out.
        return target.at[:, position + 1].set(best, mode="drop"), best

    _, chosen = jax.lax.scan(step, first, jnp.arange(length))
    return chosen.T


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
