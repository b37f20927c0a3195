"""A small decoder-only transformer with layer norm before each part.

The parts at the end of this file serve other transformers as well.
"""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

Params = dict[str, Any]


def init_transformer(
    seed: int, symbols: int, context: int, width: int, layers: int
) -> Params:
    """Normal weights: 0.02 for the embeddings, variance 1/fan-in for the rest."""
    keys = iter(jax.random.split(jax.random.key(seed), 3 + 4 * layers))
    # Residual branches begin small, so that depth does not add up, and so do logits.
    small = (2 * layers) ** -0.5
    blocks = [init_block(keys, width, 4 * width, small) for _ in range(layers)]
    return {
        "symbols": init_embedding(next(keys), symbols, width),
        "positions": init_embedding(next(keys), context, width),
        "blocks": blocks,
        "norm_out": init_norm(width),
        "out": init_affine(next(keys), width, symbols, 0.25),
    }


def transformer(params: Params, x: jax.Array, heads: int) -> jax.Array:
    """Logits of the next symbol at every position of the rows of ``x``."""
    h = params["symbols"][x] + params["positions"][: x.shape[1]]
    past = causal(x.shape[1])
    for block in params["blocks"]:
        h = h + self_attention(block, h, past, heads)
        h = h + mlp(block, h)
    return affine(params["out"], norm(params["norm_out"], h))


def init_block(
    keys: Iterator[jax.Array], width: int, hidden: int, scale: float
) -> Params:
    """The parameters of `self_attention` and `mlp`; takes four of the keys.

    ``scale`` is that of the terms that the two add to their inputs.
    """
    return {
        "norm_attention": init_norm(width),
        "queries_keys_values": init_affine(next(keys), width, 3 * width),
        "attention_out": init_affine(next(keys), width, width, scale),
        "norm_mlp": init_norm(width),
        "mlp_in": init_affine(next(keys), width, hidden),
        "mlp_out": init_affine(next(keys), hidden, width, scale),
    }


def init_affine(
    key: jax.Array, fan_in: int, fan_out: int, scale: float = 1.0
) -> Params:
    weights = jax.random.normal(key, (fan_in, fan_out))
    return {"w": weights * scale * fan_in**-0.5, "b": jnp.zeros(fan_out)}


def init_embedding(key: jax.Array, rows: int, width: int) -> jax.Array:
    return 0.02 * jax.random.normal(key, (rows, width))


def init_norm(width: int) -> Params:
    return {"scale": jnp.ones(width), "shift": jnp.zeros(width)}


def affine(layer: Params, x: jax.Array) -> jax.Array:
    return x @ layer["w"] + layer["b"]


def norm(layer: Params, x: jax.Array) -> jax.Array:
    return jax.nn.standardize(x, axis=-1) * layer["scale"] + layer["shift"]


def self_attention(
    block: Params, x: jax.Array, mask: jax.Array, heads: int
) -> jax.Array:
    normed = norm(block["norm_attention"], x)
    parts = jnp.split(affine(block["queries_keys_values"], normed), 3, axis=-1)
    return affine(block["attention_out"], attention(*parts, mask, heads))


def mlp(block: Params, x: jax.Array) -> jax.Array:
    hidden = jax.nn.gelu(affine(block["mlp_in"], norm(block["norm_mlp"], x)))
    return affine(block["mlp_out"], hidden)


def causal(length: int) -> jax.Array:
    """A mask by which every position sees itself and what is before it."""
    return jnp.tril(jnp.ones((length, length), bool))


def attention(
    queries: jax.Array, keys: jax.Array, values: jax.Array, mask: jax.Array, heads: int
) -> jax.Array:
    """Attention with several heads, side by side in the last axis.

    Queries, keys and values have shape (examples, length, width). The mask says which
    query may attend to which key; it is broadcast to (examples, heads, queries, keys).
    """
    queries, keys, values = (
        part.reshape(*part.shape[:2], heads, -1) for part in (queries, keys, values)
    )
    scores = jnp.einsum("bqhd,bkhd->bhqk", queries, keys) * queries.shape[-1] ** -0.5
    weights = jax.nn.softmax(jnp.where(mask, scores, -1e30), axis=-1)
    mixed = jnp.einsum("bhqk,bkhd->bqhd", weights, values)
    return mixed.reshape(*mixed.shape[:2], -1)
