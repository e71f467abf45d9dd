"""Measures attention preference: which tokens attend to which."""
