"""Measures what the modes meet in the tokens of images: map correlations, and the parts of position and content."""
