"""How the decomposition is computed, by machine."""
