"""The vision transformer: configuration, Linen model, and the names in its parameter tree."""
