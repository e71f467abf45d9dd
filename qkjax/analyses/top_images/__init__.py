"""Finds the images that excite each mode most."""
