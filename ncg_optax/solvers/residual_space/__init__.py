"""Exact damped Gauss-Newton steps by dense linear algebra."""
