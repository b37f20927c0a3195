"""optax's own test suites, with our transform as the optimizer under test.

The suites are read beside the installed optax, patched by text and written to a
temporary folder when this file is collected: they follow optax's releases. A patch
that no longer fits raises and says so.
"""

import importlib.util
import inspect
import os
import pathlib
import re
import subprocess
import sys
import tempfile

import jax
import jax.numpy as jnp
import optax
import optax.contrib
import pytest
from optax._src import alias

import ncg_optax as ncg

OPTAX = pathlib.Path(optax.__file__).parent
FOLDER = tempfile.TemporaryDirectory(prefix="ncg_optax_contract_")

# The optimizers under test: settings of newton_cg and of kronecker_adam as source text.
DEFAULT = "{}"
STEIHAUG = "{'damping': 0.0, 'linesearch': None, 'solver': ncg.steihaug()}"
MINRES = "{'solver': ncg.minres(), 'damping': 1e-3}"
WARM_START = "{'solver': ncg.cg(warm_start=0.5)}"
MOMENTUM = "{'solver': ncg.quadratic_momentum(ncg.cg(maxiter=2))}"
QUASI_NEWTON = "{'solver': ncg.quasi_newton(ncg.cg(maxiter=2))}"
AVERAGED = "{'solver': ncg.averaged_gradient(), 'damping': 1e-3, 'linesearch': None}"
COMMON_VARIANTS = (DEFAULT, STEIHAUG)
ALIAS_VARIANTS = (DEFAULT, MINRES)
KRONECKER_ADAM_VARIANTS = (DEFAULT, "{'learning_rate': 3e-3}")
SHARDING_VARIANTS = (
    DEFAULT,
    STEIHAUG,
    MINRES,
    WARM_START,
    MOMENTUM,
    QUASI_NEWTON,
    AVERAGED,
)


def patch(source: str, old: str, new: str, count: int) -> str:
    """``source`` with ``old`` replaced, which must occur ``count`` times."""
    found = source.count(old)
    if found != count:
        raise AssertionError(
            f"optax {optax.__version__} has {old!r} {found} times, not {count}: adapt "
            "the patches of the contract tests"
        )
    return source.replace(old, new)


def patch_between(source: str, start: str, end: str, new: str) -> str:
    """``source`` with everything from ``start`` up to ``end`` replaced."""
    begin = source.index(start)
    return source[:begin] + new + source[source.index(end, begin) :]


def patch_test(source: str, name: str, *patches: tuple[str, str, int]) -> str:
    """``source`` patched within one test method."""
    begin = source.index(f"  def {name}(")
    following = re.compile(r"^(  @|  def |\S)", re.MULTILINE)
    end = following.search(source, source.index("\n", source.index("):", begin)) + 1)
    body = source[begin : end.start()]
    for old, new, count in patches:
        body = patch(body, old, new, count)
    return source[:begin] + body + source[end.start() :]


def write(name: str, source: str) -> pathlib.Path:
    path = pathlib.Path(FOLDER.name, f"{name}.py")
    path.write_text(source)
    return path


def load(name: str, source: str):
    """The module of a generated suite."""
    spec = importlib.util.spec_from_file_location(name, write(name, source))
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def table(opt_name: str, variants: tuple[str, ...], **more: object) -> str:
    rows = (
        f"dict(opt_name={opt_name!r}, opt_kwargs={kwargs}, **{more})"
        for kwargs in variants
    )
    return f"({', '.join(rows)},)\n"


def bowl_through(params):
    """A quadratic with gradient ``-params`` at ``params``, as two suites assume."""
    return lambda tree: sum(
        jnp.sum((x - 2 * p) ** 2) / 2 for x, p in zip(tree, params, strict=True)
    )


def common_suite() -> str:
    source = OPTAX.joinpath("contrib/_common_test.py").read_text()
    variants = tuple(
        v.replace("{", "{'learning_rate': 1.0, ", 1) for v in COMMON_VARIANTS
    )
    rows = table("sophia", variants, wrapper_name=None, wrapper_kwargs=None)
    source = patch_between(
        source,
        "_MAIN_OPTIMIZERS_UNDER_TEST = [",
        "# pylint: enable=invalid-name",
        "import ncg_optax as ncg\n"
        "from test_optax_suites import bowl_through\n"
        f"_MAIN_OPTIMIZERS_UNDER_TEST = {rows}"
        "_ALL_OPTIMIZERS_UNDER_TEST = _MAIN_OPTIMIZERS_UNDER_TEST\n",
    )
    source = patch(source, "length=30_000", "length=300", 1)
    return patch_test(
        source,
        "test_optimizers_can_be_wrapped_in_inject_hyperparams",
        ("lambda x: optax.tree.norm(x, squared=True)", "bowl_through(params)", 1),
    )


def evaluated(name: str, state, params):
    """Where the model is evaluated after training."""
    return ncg.averaged_params(state, params) if name == "kronecker_adam" else params


def alias_suite() -> str:
    source = OPTAX.joinpath("_src/alias_test.py").read_text()
    rows = table("ncg", ALIAS_VARIANTS).strip()
    more = table("kronecker_adam", KRONECKER_ADAM_VARIANTS)
    source = patch_between(
        source,
        "_OPTIMIZERS_UNDER_TEST = (",
        "def _get_opt(",
        "import ncg_optax as ncg\n"
        "from test_optax_suites import bowl_through, evaluated\n"
        f"_OPTIMIZERS_UNDER_TEST = {rows} + {more}\n",
    )
    source = source[: source.index("# ALGORITHM SPECIFIC TESTS")]
    none = "update_kwargs = {}"
    with_objective = "update_kwargs = {'value_fn': objective}"
    with_fun = "update_kwargs = {'value_fn': fun}"
    jitted = "jax.jit(opt.update)("
    jitted_fun = "jax.jit(functools.partial(opt.update, value_fn=fun))("
    source = patch_test(
        source,
        "test_optimization",
        (none, with_objective, 1),
        # It is evaluated at the average of its iterates.
        (
            "params, final_params, rtol",
            "evaluated(opt_name, state, params), final_params, rtol",
            1,
        ),
        ("range(10000)", "range(60 if opt_name == 'ncg' else 10000)", 1),
    )
    source = patch_test(
        source,
        "test_optimizers_accept_extra_args",
        ("doesnt_expect': 1}", "doesnt_expect': 1, 'value_fn': objective}", 1),
    )
    source = patch_test(
        source,
        "test_optimizers_can_be_wrapped_in_inject_hyperparams",
        (
            "    state = jax.jit(opt.init)",
            "    fun = bowl_through(params)\n    state = jax.jit(opt.init)",
            1,
        ),
        (jitted, jitted_fun, 1),
        (
            "jax.jit(opt_inject.update)(",
            "jax.jit(functools.partial(opt_inject.update, value_fn=fun))(",
            1,
        ),
    )
    source = patch_test(source, "test_preserve_dtype", (jitted, jitted_fun, 1))
    source = patch_test(
        source, "test_state_shape_dtype_shard_stability", (none, with_objective, 1)
    )
    source = patch_test(source, "test_gradient_accumulation", (none, with_fun, 1))
    # This one is about sgd and adam only.
    return patch(source, "def test_explicit_dtype", "def only_for_adam", 1)


def sharding_suite() -> str:
    source = OPTAX.joinpath("_src/sharding_test.py").read_text()
    optimizers = ", ".join(
        f"'variant{i}': bind(ncg.newton_cg(**{kwargs}))"
        for i, kwargs in enumerate(SHARDING_VARIANTS)
    )
    source = patch_between(
        source,
        "OPTIMIZERS = {",
        "class ShardingTest",
        f"""\
import ncg_optax as ncg


def value_fn(params):
  return 0.5 * jnp.sum((params.astype(jnp.float32) - 1.0) ** 2)


def bind(tx):
  def update(updates, state, params=None):
    return tx.update(updates, state, params, value_fn=value_fn)
  return optax.GradientTransformationExtraArgs(tx.init, update)


OPTIMIZERS = {{{optimizers}}}


""",
    )
    # Comparisons of version *strings*, true for 0.10.
    source = patch(source, "if jax.__version__ < '0.7.2'", "if False", 2)
    # A gradient that is not zero, at the parameters the suite starts from.
    source = patch(
        source, "optimizer.update(params,", "optimizer.update(params - 1,", 2
    )
    source = patch(
        source,
        "jax.jit(optimizer.update)(params,",
        "jax.jit(optimizer.update)(params - 1,",
        1,
    )
    return patch_between(
        source,
        "  @parameterized.named_parameters(\n      ('replicated'",
        "if __name__",
        "",
    )


def sophia(
    learning_rate: optax.ScalarOrSchedule = 1.0,
    curvature: ncg.curvature.Curvature = ncg.hessian(),
    damping: float | ncg.globalization.Damping = ncg.levenberg_marquardt(),
    solver: ncg.solvers.Solver = ncg.cg(),
    linesearch: ncg.globalization.LineSearch | None = ncg.armijo(),
) -> optax.GradientTransformationExtraArgs:
    """newton_cg in the place of the one optimizer to which the suite hands its loss."""
    tx = ncg.newton_cg(
        learning_rate,
        curvature=curvature,
        damping=damping,
        solver=solver,
        linesearch=linesearch,
    )

    def update(updates, state, params=None, *, obj_fn, **extra):
        return tx.update(updates, state, params, value_fn=obj_fn, **extra)

    return optax.GradientTransformationExtraArgs(tx.init, update)


sys.modules.setdefault("test_optax_suites", sys.modules[__name__])
ContribTest = load("ncg_generated_common_test", common_suite()).ContribTest
AliasTest = load("ncg_generated_alias_test", alias_suite()).AliasTest


@pytest.fixture(autouse=True)
def installed(monkeypatch):
    """Our transform under the names at which the suites look for theirs."""
    monkeypatch.setattr(optax.contrib, "sophia", sophia)
    monkeypatch.setattr(alias, "ncg", ncg.newton_cg, raising=False)
    name, function = "kronecker_adam", ncg.kronecker_adam
    monkeypatch.setattr(alias, name, function, raising=False)


def test_the_suites_have_not_shrunk():
    def tests(case):
        return [n for n, _ in inspect.getmembers(case) if n.startswith("test_")]

    assert len(tests(ContribTest)) >= 16 * len(COMMON_VARIANTS)
    variants = len(ALIAS_VARIANTS) + len(KRONECKER_ADAM_VARIANTS)
    assert len(tests(AliasTest)) >= 16 * variants


@pytest.mark.slow
def test_sharding_suite():
    path = write("test_ncg_generated_sharding", sharding_suite())
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8"
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-W", "error", path],
        cwd=FOLDER.name,
        env={**os.environ, "XLA_FLAGS": flags, "JAX_ENABLE_X64": "0"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    output = run.stdout + run.stderr
    assert run.returncode == 0, output
    assert f"{3 * len(SHARDING_VARIANTS)} passed" in output, output


def test_state_types_survive_explicit_sharding_of_one_device():
    """The same contract without a subprocess, with a mesh of the device at hand."""
    mesh = jax.make_mesh((1,), ("x",), axis_types=(jax.sharding.AxisType.Explicit,))
    with jax.set_mesh(mesh):
        spec = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "x"))
        params = jnp.ones((2, 8), jnp.bfloat16, out_sharding=spec)
        value_fn = lambda p: jnp.sum(p.astype(jnp.float32) ** 2) / 2  # noqa: E731
        tx = ncg.newton_cg()
        state = tx.init(params)
        updates, after = jax.jit(lambda g, s, p: tx.update(g, s, p, value_fn=value_fn))(
            params, state, params
        )
    assert jax.typeof(updates) == jax.typeof(params)
    assert jax.tree.map(jax.typeof, after) == jax.tree.map(jax.typeof, state)
