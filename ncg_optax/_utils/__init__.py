"""Used everywhere: arithmetic on vectors, reductions, argument checks, statuses."""
