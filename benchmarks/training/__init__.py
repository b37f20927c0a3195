"""Training: how it is run, tuned, interrupted and continued, and what it costs."""
