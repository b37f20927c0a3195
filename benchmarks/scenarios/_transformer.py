"""A small decoder-only transformer with layer norm before each part."""

from typing import Any

import jax
import jax.numpy as jnp

Params = dict[str, Any]


def init_transformer(
    seed: int, symbols: int, context: int, width: int, layers: int
) -> Params:
    """Normal weights: 0.02 for the embeddings, variance 1/fan-in for the rest.

    Example:
        >>> shapes = jax.eval_shape(lambda: init_transformer(0, 7, 4, 8, layers=2))
        >>> shapes["blocks"][0]["queries_keys_values"]["w"].shape
        (8, 24)
    """
    keys = iter(jax.random.split(jax.random.key(seed), 3 + 4 * layers))

    def matrix(fan_in: int, fan_out: int, scale: float = 1.0) -> Params:
        weights = jax.random.normal(next(keys), (fan_in, fan_out))
        return {"w": weights * scale * fan_in**-0.5, "b": jnp.zeros(fan_out)}

    def norm() -> Params:
        return {"scale": jnp.ones(width), "shift": jnp.zeros(width)}

    # Residual branches begin small, so that depth does not add up, and so do logits.
    small = (2 * layers) ** -0.5
    blocks = [
        {
            "norm_attention": norm(),
            "queries_keys_values": matrix(width, 3 * width),
            "attention_out": matrix(width, width, small),
            "norm_mlp": norm(),
            "mlp_in": matrix(width, 4 * width),
            "mlp_out": matrix(4 * width, width, small),
        }
        for _ in range(layers)
    ]
    return {
        "symbols": 0.02 * jax.random.normal(next(keys), (symbols, width)),
        "positions": 0.02 * jax.random.normal(next(keys), (context, width)),
        "blocks": blocks,
        "norm_out": norm(),
        "out": matrix(width, symbols, 0.25),
    }


def transformer(params: Params, x: jax.Array, heads: int) -> jax.Array:
    """Logits of the next symbol at every position.

    Args:
        params: of `init_transformer`.
        x: symbols, one sequence per row, no longer than the context.
        heads: of the attention.

    Example:
        >>> def logits(x):
        ...     return transformer(init_transformer(0, 7, 4, 8, 2), x, heads=2)
        >>> jax.eval_shape(logits, jnp.zeros((3, 4), int)).shape
        (3, 4, 7)
    """
    h = params["symbols"][x] + params["positions"][: x.shape[1]]
    for block in params["blocks"]:
        normed = _norm(block["norm_attention"], h)
        mixed = _attention(_affine(block["queries_keys_values"], normed), heads)
        h = h + _affine(block["attention_out"], mixed)
        hidden = jax.nn.gelu(_affine(block["mlp_in"], _norm(block["norm_mlp"], h)))
        h = h + _affine(block["mlp_out"], hidden)
    return _affine(params["out"], _norm(params["norm_out"], h))


def _attention(queries_keys_values: jax.Array, heads: int) -> jax.Array:
    """Causal attention, the heads side by side in the last axis."""
    count, length, _ = queries_keys_values.shape
    parts = queries_keys_values.reshape(count, length, 3, heads, -1)
    queries, keys, values = jnp.moveaxis(parts, 2, 0)
    scores = jnp.einsum("bqhd,bkhd->bhqk", queries, keys) * queries.shape[-1] ** -0.5
    past = jnp.tril(jnp.ones((length, length), bool))
    weights = jax.nn.softmax(jnp.where(past, scores, -1e30), axis=-1)
    mixed = jnp.einsum("bhqk,bkhd->bqhd", weights, values)
    return mixed.reshape(count, length, -1)


def _affine(layer: Params, x: jax.Array) -> jax.Array:
    return x @ layer["w"] + layer["b"]


def _norm(layer: Params, x: jax.Array) -> jax.Array:
    return jax.nn.standardize(x, axis=-1) * layer["scale"] + layer["shift"]
