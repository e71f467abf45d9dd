"""Writes a static website that shows results about modes, images and attention. The site opens from disk."""
