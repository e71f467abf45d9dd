"""Converts the parameter names and layouts of each checkpoint family to the parameter tree of big_vision's ViT."""
