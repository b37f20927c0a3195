#!/usr/bin/env bash
# Times steps on one GPU in at most eight minutes: bash benchmarks/gpu.sh [options]
#
# Writes benchmarks/results/gpu.json, of which docs/gpu.md shows tables. The options are
# those of `python -m benchmarks gpu`: --budget SECONDS, --small for a dry run on a CPU.
# PYTHON names the interpreter, `python3` by default. If that lacks a package, a virtual
# environment is made in .venv-gpu, which needs a network; otherwise none is needed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python3}
if ! "$python" -c 'import jax, optax, flax, matplotlib, rich, typer, PIL' 2>/dev/null; then
  [ -x .venv-gpu/bin/python ] || "$python" -m venv .venv-gpu
  python=.venv-gpu/bin/python
  "$python" -c 'import typer' 2>/dev/null ||
    "$python" -m pip install --quiet "jax[cuda12]" ".[bench]"
fi
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
# A second run finds the programs of the first one.
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$HOME/.cache/ncg_optax/jax}
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0
# Each part has the device for itself.
export XLA_PYTHON_CLIENT_MEM_FRACTION=${XLA_PYTHON_CLIENT_MEM_FRACTION:-.92}
exec "$python" -m benchmarks gpu "$@"
