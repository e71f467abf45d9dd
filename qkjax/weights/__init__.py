"""Loads checkpoints by name or path, checks their parameters, and writes checkpoints to files."""
