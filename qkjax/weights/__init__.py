"""Reads checkpoints from names, files and folders into checked parameter trees, and writes them."""
