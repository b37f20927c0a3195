"""Which examples the curvature is computed on, and how many at a time."""
