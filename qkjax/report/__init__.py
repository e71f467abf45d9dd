"""Writes a static web site with results about modes, images and attention, which opens from disk in a browser."""
