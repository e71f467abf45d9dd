"""Writes a static web site that shows results about modes, images and attention. The site opens from disk."""
