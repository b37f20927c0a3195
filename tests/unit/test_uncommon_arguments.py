"""Arguments that few users pass: functions without a signature, what is no dtype."""

import inspect

import pytest

from ncg_optax._utils import validate


def test_a_function_without_a_signature_may_be_a_schedule():
    with pytest.raises(ValueError):
        inspect.signature(max)
    assert validate.schedule("x", max) is max


@pytest.mark.parametrize("x", ["int32", "no dtype", 3.0])
def test_what_is_no_floating_point_dtype_is_named(x):
    with pytest.raises(TypeError, match="x must be a floating-point dtype such as f"):
        validate.float_dtype("x", x, "float32")
