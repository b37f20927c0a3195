"""Physics-informed networks: equations, points, reference solutions, networks."""
