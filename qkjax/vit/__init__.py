"""The vision transformer: configuration, Linen model, and where things lie in its parameter tree."""
