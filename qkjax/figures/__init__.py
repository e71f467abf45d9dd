"""Figures of the metrics. Each function takes results and returns a matplotlib `Figure`."""

from qkjax.figures.layers import cosine_by_layer, difference_map, head_map, symmetry_by_layer
from qkjax.figures.modes import cosine_histograms, spectra
from qkjax.figures.style import save

__all__ = ["cosine_by_layer", "cosine_histograms", "difference_map", "head_map", "save", "spectra", "symmetry_by_layer"]
