import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ncg_optax as ncg
from ncg_optax._utils.status import first_match


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


CASES = [(True, True, 1), (True, False, 1), (False, True, 2), (False, False, 3)]


@pytest.mark.parametrize("a, b, expected", CASES)
def test_the_first_case_that_holds(a, b, expected):
    code = first_match((jnp.array(a), 1), (b, jnp.array(2)), otherwise=3)
    assert code == expected and code.dtype == jnp.int32


def test_a_case_is_one_select():
    """They are in the loops of all solvers."""
    program = jax.jit(lambda a, b, c: first_match((a, 1), (b, 2), otherwise=c))
    text = program.lower(True, False, 3).as_text()
    assert "reduce" not in text and "iota" not in text
