"""Figures of the metrics. Each function takes results and returns a matplotlib `Figure`."""

from qkjax.figures.ablations import ABLATIONS, ablation_figures, attention_by_layer, dose_response, layer_map
from qkjax.figures.layers import cosine_by_layer, difference_map, head_map, symmetry_by_layer
from qkjax.figures.modes import cosine_histograms, spectra
from qkjax.figures.overlay import overlay
from qkjax.figures.preference import (
    anisotropy_by_layer,
    attended_example,
    preference_by_layer,
    preference_links,
    same_object_by_layer,
)
from qkjax.figures.sheets import contact_sheet, top_images_sheet
from qkjax.figures.style import save
from qkjax.figures.training import sweep_accuracy, sweep_cosines, sweep_curves

__all__ = [
    "ABLATIONS",
    "ablation_figures",
    "anisotropy_by_layer",
    "attended_example",
    "attention_by_layer",
    "contact_sheet",
    "cosine_by_layer",
    "cosine_histograms",
    "difference_map",
    "dose_response",
    "head_map",
    "layer_map",
    "overlay",
    "preference_by_layer",
    "preference_links",
    "same_object_by_layer",
    "save",
    "spectra",
    "sweep_accuracy",
    "sweep_cosines",
    "sweep_curves",
    "symmetry_by_layer",
    "top_images_sheet",
]
