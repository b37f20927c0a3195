"""How a loss is given to the optimizer."""
