"""Pure functions of the arrays of one forward pass."""
