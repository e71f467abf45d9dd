"""Draws figures of results. Each function takes results and returns a matplotlib `Figure`.

    figure = qkjax.figures.head_map(name, metrics)
    qkjax.figures.save(figure, "head_map")

Each function is imported when it is first used, so that drawing a figure loads only the modules that it needs. In
particular, the processes in which `save_all` draws sheets load neither JAX nor scipy.
"""

from importlib import import_module

from qkjax.figures.overlay import overlay  # otherwise, the name would refer to the module `overlay`

_HOME = {
    "ABLATIONS": "ablations",
    "ablation_figures": "ablations",
    "anisotropy_by_layer": "preference",
    "attended_example": "preference",
    "attention_by_layer": "ablations",
    "composition_by_layer": "composition",
    "composition_of_pairs": "composition",
    "contact_sheet": "sheets",
    "cosine_by_distance": "positions",
    "cosine_by_layer": "layers",
    "cosine_by_offset": "positions",
    "cosine_histograms": "modes",
    "difference_map": "layers",
    "dose_response": "ablations",
    "drawn": "many",
    "head_map": "layers",
    "layer_map": "ablations",
    "map_correlation_by_layer": "tokens",
    "position_and_content": "tokens",
    "position_share": "positions",
    "position_share_by_plane": "positions",
    "preference_by_layer": "preference",
    "preference_links": "preference",
    "same_object_by_layer": "preference",
    "save": "style",
    "save_all": "many",
    "sink_heads": "sinks",
    "sinks_by_layer": "sinks",
    "spectra": "modes",
    "sweep_accuracy": "training",
    "sweep_cosines": "training",
    "sweep_curves": "training",
    "symmetry_by_layer": "layers",
    "token_norms": "sinks",
    "tokens_of_models": "tokens",
    "top_images_sheet": "sheets",
}

__all__ = [*_HOME, "overlay"]  # noqa: PLE0604


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'qkjax.figures' has no attribute {name!r}")
    return getattr(import_module(f"qkjax.figures.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
