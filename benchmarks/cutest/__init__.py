"""CUTEst problems: scipy's methods, and others of JAX, against ours.

The problems are those of ``sif2jax``, in float64, in three collections: "small" ones
without bounds, at most 100 variables; "large" ones, 101 to 5,000; and those with
"bounds", at most 100. A problem is *solved* if the largest absolute entry of the
gradient, computed afresh at the point that a method returns, is at most ``gtol``
(1e-6). With bounds it is the gradient ``x - P(x - g)``, P the projection to the box.

Cost is counted in gradient-equivalents: 1 per gradient, 1/3 per extra value and 1.5 per
Hessian product. The value at a point where the gradient is also asked for is part of
that gradient, and asking twice at one point costs once, so scipy is charged for what
its algorithms need and not for the way its code asks.

scipy's settings: all defaults, except that its own stopping rules are made too tight to
matter and the iteration limits too high. A callback stops every method at the first
iterate that counts as solved, so none pays for polishing. A run beyond ``time_limit``
seconds (compilation apart) is unsolved. BLAS gets one thread: with more, its threads
cost L-BFGS-B a factor of ten on vectors as short as these.

scipy's TNC has no such callback. With bounds every method of scipy ends at the first
point that it evaluates that counts as solved, be it an iterate or not.

L-BFGS of optax and BFGS of optimistix are charged for the gradients and values that
their line searches ask for, and stopped by the same rule. BFGS, whose matrix is dense,
is not run on more than 1,000 variables; there it counts as unsolved.

Ours has ``maxiter`` and the same time limit. It reports its own count, at the same
prices but a little stricter: a trial value that is accepted costs its third beside the
gradient there, and the search for negative curvature before convergence is claimed
costs its products.

Problems are excluded, with the reason, if the value, the gradient or a Hessian product
along the gradient is not finite at the start, or if the start already counts as solved.

    python -m benchmarks.cutest run --resume
    python -m benchmarks.cutest run --collection large --resume
    python -m benchmarks.cutest run --collection bounds --resume
    python -m benchmarks.cutest table results/cutest.json [--readme README.md]
    python -m benchmarks.cutest plot results/cutest.json
"""
