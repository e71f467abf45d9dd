"""Measures attention sinks, and tokens of large norm."""
