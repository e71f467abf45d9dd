"""Attention preference: which tokens attend to which."""
