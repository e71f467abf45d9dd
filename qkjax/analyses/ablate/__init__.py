"""What edits of modes do to a set of images."""
