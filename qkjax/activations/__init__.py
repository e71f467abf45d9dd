"""Pure functions that compute maps, scores and measures from the arrays of one forward pass."""
