import jax.numpy as jnp
import numpy as np
import pytest

import ncg_optax as ncg


@pytest.mark.parametrize("status", ncg.Status)
def test_every_code_has_a_sentence(status):
    sentence = ncg.explain(status)
    assert sentence[0].isupper() and sentence.rstrip(")")[-1] in ".?"
    assert len(sentence) > 20


def test_sentences_differ():
    assert len({ncg.explain(s) for s in ncg.Status}) == len(ncg.Status)


@pytest.mark.parametrize("kind", [int, jnp.int32, np.int32, jnp.asarray, ncg.Status])
def test_any_concrete_integer_will_do(kind):
    code = kind(int(ncg.Status.ACCEPTED))
    assert ncg.explain(code) == "The full step was accepted."


@pytest.mark.parametrize("code", [-1, 13, 99])
def test_unknown_codes_are_refused(code):
    with pytest.raises(
        ValueError, match=f"status must be one of the codes .* got {code}"
    ):
        ncg.explain(code)


def test_codes_are_grouped_as_documented():
    solver = {"RESIDUAL_CONVERGED", "MAX_ITERATIONS", "NEGATIVE_CURVATURE"}
    step = {"ACCEPTED", "SHORTENED", "ZERO_GRADIENT"}
    end = {"CONVERGED_GRADIENT", "SADDLE_POINT", "DIVERGED"}
    assert all(ncg.Status[name] < 20 for name in solver)
    assert all(20 <= ncg.Status[name] < 40 for name in step)
    assert all(ncg.Status[name] >= 40 for name in end)
