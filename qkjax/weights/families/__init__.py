"""Converts names and layouts of each family of checkpoints to the parameter tree of big_vision's ViT."""
