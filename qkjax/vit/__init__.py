"""The vision transformer: its configuration, its Flax Linen module, and the names in its parameter tree."""
