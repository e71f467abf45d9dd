"""Contrasts queries and keys on the same object with those on different objects."""
