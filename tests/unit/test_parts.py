"""The repr of a part: short, and without addresses."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest

from ncg_optax._utils.parts import Part


@dataclasses.dataclass(frozen=True)
class part(Part):  # noqa: N801
    first: Any
    second: Any = 2
    third: Any = dataclasses.field(default_factory=dict)


class TestPart:
    def test_shows_only_what_is_not_a_default(self):
        assert repr(part(1)) == "part(1)"
        assert repr(part(None, second=3)) == "part(None, second=3)"
        assert repr(part("a", third={"b": 1})) == "part('a', third={'b': 1})"
        assert repr(part(1, 2, {})) == "part(1)"

    @pytest.mark.parametrize(
        "value, shown",
        [
            (jnp.tanh, "tanh"),
            (optax.exponential_decay(1.0, 10, 0.9), "exponential_decay(...)"),
            (functools.partial(jnp.tanh), "partial(tanh, ...)"),
            (jnp.ones((2, 3)), "float32[2, 3]"),
            ({"w": jnp.zeros(4)}, "{'w': float32[4]}"),
            (part(1), "part(1)"),
        ],
    )
    def test_values_without_addresses(self, value, shown):
        assert repr(part(1, value)) == f"part(1, second={shown})"

    def test_under_jit(self):
        shown = []
        jax.jit(lambda x: shown.append(repr(part(x, x))))(1.0)
        assert shown == ["part(float32[], second=float32[])"]

    def test_a_repr_of_its_own_is_kept(self):
        @dataclasses.dataclass(frozen=True)
        class other(Part):  # noqa: N801
            def __repr__(self):
                return "mine"

        assert repr(other()) == "mine"
