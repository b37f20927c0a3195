import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ncg_optax.solvers.residual_space import symmetric_product as module


@pytest.mark.parametrize("rows", [1, 7, 37])
@pytest.mark.parametrize("parts", [1, 2, 5])
def test_the_product(rows, parts, monkeypatch):
    monkeypatch.setattr(module, "SMALLEST", 2)
    monkeypatch.setattr(module, "PARTS", parts)
    a = np.random.default_rng(0).normal(size=(rows, 5)).astype(np.float32)
    found = module.symmetric_product(jnp.asarray(a))
    np.testing.assert_allclose(found, a @ a.T, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(found, found.T)


def test_half_of_the_operations():
    a = jax.ShapeDtypeStruct((4096, 64), jnp.float32)
    compiled = jax.jit(module.symmetric_product).lower(a).compile()
    general = 2 * 4096**2 * 64
    share = (1 + 1 / module.PARTS) / 2
    assert compiled.cost_analysis()["flops"] < (share + 1e-3) * general
