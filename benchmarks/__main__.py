"""Lets ``python -m benchmarks`` start the command-line program."""

import os

# The threads of OpenBLAS, which computes decompositions on a CPU, wait actively between
# two calls and take the cores from XLA. All optimizers are timed without them. It has
# to be set before JAX is imported.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from benchmarks.commands import app  # noqa: E402

if __name__ == "__main__":
    app(prog_name="python -m benchmarks")
