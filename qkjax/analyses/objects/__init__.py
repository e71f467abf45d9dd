"""Measures whether the query and the key of a mode are on the same object."""
