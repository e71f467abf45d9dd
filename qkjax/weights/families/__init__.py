"""Names and layouts of each family of checkpoints, converted to the parameter tree of big_vision's ViT."""
