import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ncg_optax._utils import pytree

A = {"w": jnp.array([1.0, -2.0]), "b": jnp.array(3.0)}
B = {"w": jnp.array([0.5, 4.0]), "b": jnp.array(-1.0)}


@pytest.mark.parametrize(
    ("dtypes", "expected"),
    [
        (["bfloat16"], "float32"),
        (["float16", "bfloat16"], "float32"),
        (["bfloat16", "float32"], "float32"),
        (["float32", "float64"], "float64"),
        (["complex64"], "float32"),
        (["complex128", "float32"], "float64"),
    ],
)
def test_scalars_are_real_and_float32_or_wider(dtypes, expected):
    with jax.enable_x64(True):
        assert pytree.scalar_dtype([jnp.zeros(1, d) for d in dtypes]) == expected


def test_scalar_dtype_of_abstract_leaves():
    leaf = jax.ShapeDtypeStruct((2,), jnp.bfloat16)
    assert pytree.scalar_dtype(leaf) == jnp.float32


def test_widen_touches_only_narrow_leaves():
    tree = [jnp.ones(2, d) for d in ("bfloat16", "float16", "float32", "complex64")]
    dtypes = [x.dtype for x in pytree.widen(tree)]
    assert dtypes == ["float32", "float32", "float32", "complex64"]


def test_widened_zeros_of_abstract_leaves():
    tree = {"w": jax.ShapeDtypeStruct((2, 3), jnp.bfloat16)}
    zeros = pytree.widened_zeros_like(tree)["w"]
    assert zeros.shape == (2, 3) and zeros.dtype == jnp.float32
    assert not zeros.any()


def test_vdot_and_norm():
    assert pytree.vdot(A, B) == 0.5 - 8.0 - 3.0
    assert pytree.norm({"x": jnp.array([3.0]), "y": jnp.array(4.0)}) == 5.0


def test_vdot_of_complex_is_that_of_the_real_and_imaginary_parts():
    a, b = jnp.array([1 + 2j, -3j]), jnp.array([2 - 1j, 1 + 1j])
    product = pytree.vdot(a, b)
    assert product.dtype == jnp.float32
    assert product == 1 * 2 + 2 * -1 + -3 * 1


def test_vdot_of_a_complex_and_a_real_leaf_tree():
    tree = {"c": jnp.array([3 + 4j]), "r": jnp.array([12.0])}
    assert pytree.norm(tree) == 13.0


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_narrow_products_accumulate_in_float32(dtype):
    ones = jnp.ones(5001, dtype)
    product = pytree.vdot(ones, ones)
    assert product.dtype == jnp.float32
    assert product == 5001.0


def test_products_of_narrow_numbers_are_not_rounded():
    x = jnp.array([1 + 2**-7], jnp.bfloat16)
    assert pytree.vdot(x, x) == (1 + 2**-7) ** 2


def test_max_norm_ignores_empty_leaves_and_sees_complex_ones():
    tree = [jnp.zeros((0, 2)), jnp.array([-1.0, 2.0]), jnp.array([3 + 4j])]
    assert pytree.max_norm(tree) == 5.0


def test_add_scaled_and_scale_keep_the_dtypes_of_the_first():
    a = [jnp.array([1.0], jnp.bfloat16), jnp.array([1.0])]
    b = [jnp.array([2.0]), jnp.array([3.0])]
    total = pytree.add_scaled(a, jnp.float32(2.0), b)
    assert [x.dtype for x in total] == [jnp.bfloat16, jnp.float32]
    assert [float(x[0]) for x in total] == [5.0, 7.0]
    halved = pytree.scale(a, jnp.float32(0.5))
    assert [x.dtype for x in halved] == [jnp.bfloat16, jnp.float32]
    assert [float(x[0]) for x in halved] == [0.5, 0.5]


def test_cast_like_gives_strong_types():
    cast = pytree.cast_like(
        [jnp.asarray(1.0), 2], [jnp.zeros(()), jnp.zeros((), "int32")]
    )
    assert [x.dtype for x in cast] == ["float32", "int32"]
    assert not any(x.weak_type for x in cast)


PARTS = (np.real, np.imag)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_where_never_mixes_in_what_it_does_not_choose(bad):
    good, poisoned = {"w": jnp.ones(2)}, {"w": jnp.full(2, bad)}
    np.testing.assert_array_equal(pytree.where(True, good, poisoned)["w"], 1.0)
    np.testing.assert_array_equal(pytree.where(False, poisoned, good)["w"], 1.0)


def test_conj_leaves_real_leaves_alone():
    tree = pytree.conj({"c": jnp.array([1 + 2j]), "r": A["w"]})
    assert tree["c"] == 1 - 2j
    assert tree["r"] is A["w"]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_all_finite(bad):
    assert pytree.all_finite(A)
    assert not pytree.all_finite({**A, "b": jnp.array([0.0, bad])})
    assert not pytree.all_finite({**A, "b": jnp.array([0.0, 1j * bad])})


def test_random_normal_differs_between_leaves_and_follows_their_type():
    like = {"a": jnp.zeros(500), "b": jnp.zeros(500), "c": jnp.zeros(500, "complex64")}
    sample = pytree.random_normal(jax.random.key(0), like)
    assert sample["c"].dtype == jnp.complex64
    assert not np.array_equal(sample["a"], sample["b"])
    for leaf in sample.values():
        assert abs(np.mean(leaf)) < 0.2
        assert np.mean(np.abs(leaf) ** 2) == pytest.approx(1.0, abs=0.2)


def test_random_signs_are_of_size_one_and_independent():
    like = {"a": jnp.zeros((25, 40)), "b": jnp.zeros(1000, "complex64")}
    like |= {"c": jnp.zeros((0, 3)), "d": jnp.zeros((), jnp.bfloat16)}
    sample = pytree.random_signs(jax.random.key(0), like)
    assert jax.tree.map(jnp.shape, sample) == jax.tree.map(jnp.shape, like)
    assert jax.tree.map(jnp.result_type, sample) == jax.tree.map(jnp.result_type, like)
    np.testing.assert_array_equal(jnp.abs(sample["a"]), 1.0)
    np.testing.assert_allclose(jnp.abs(sample["b"]), 1.0, rtol=1e-6)
    signs = np.stack([np.ravel(sample["a"])] + [np.sign(f(sample["b"])) for f in PARTS])
    np.testing.assert_allclose(signs @ signs.T / 1000, np.eye(3), atol=0.1)


def test_a_total_is_a_sum():
    numbers = {"a": jnp.array(1.5), "b": [jnp.array(2.0), jnp.array(-4.0)]}
    assert pytree.total(numbers) == -0.5
    assert jnp.isnan(pytree.total({"a": jnp.array(np.nan), "b": jnp.array(1.0)}))


def test_in_dtypes_of_casts_down_for_the_product_and_up_again():
    seen = []

    def matvec(v):
        seen.append(v["w"].dtype)
        return v

    out = pytree.in_dtypes_of({"w": jnp.zeros(1, jnp.bfloat16)}, matvec)(
        {"w": jnp.ones(1)}
    )
    assert seen == [jnp.bfloat16]
    assert out["w"].dtype == jnp.float32


def test_none_leaves_are_no_leaves():
    tree = {"w": jnp.array([3.0, 4.0]), "frozen": None}
    assert pytree.norm(tree) == 5.0
    assert pytree.add_scaled(tree, 1.0, tree)["frozen"] is None
    assert pytree.all_finite(tree)


def test_complex_leaves_as_real_ones_and_back():
    tree = {"c": jnp.array([1 + 2j, 3j]), "r": jnp.array([5.0])}
    real = pytree.as_real(tree)
    np.testing.assert_array_equal(real["c"], [[1, 2], [0, 3]])
    back = pytree.from_real(real, tree)
    for name in tree:
        np.testing.assert_array_equal(back[name], tree[name])
