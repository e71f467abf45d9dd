"""qkjax: the query-key interaction of vision transformers, dissected (arXiv 2405.14880).

    checkpoint = qkjax.load("dinov2-vits14-focus")
    modes = qkjax.decompose(*qkjax.query_key_kernels(checkpoint.params))
    metrics = qkjax.measure(modes)
    figure = qkjax.figures.cosine_by_layer({checkpoint.name: metrics})

Names below are imported when first used, so that importing qkjax costs nothing.
"""

from importlib import import_module

_HOME = {
    "QueryKey": "interaction.query_key",
    "BiasTerms": "interaction.bias",
    "Checkpoint": "weights.checkpoint",
    "AblationOptions": "analyses.ablate.ablator",
    "Edit": "analyses.edit",
    "ImageOptions": "analyses.image",
    "Metrics": "interaction.metrics",
    "Modes": "interaction.modes",
    "Null": "interaction.null",
    "QkjaxError": "errors",
    "ScanOptions": "analyses.top_images.scan",
    "ViT": "vit.model",
    "ViTConfig": "vit.config",
    "query_key": "vit.tree",
    "bias_terms": "interaction.bias",
    "contact_rows": "analyses.image",
    "decompose": "interaction.modes",
    "dissect": "analyses.image",
    "edited": "analyses.edit",
    "export": "weights.export",
    "for_photographs": "passes.inputs",
    "forward": "vit.model",
    "layer_table": "results.modes",
    "load": "weights.load",
    "measure": "interaction.metrics",
    "null_band": "interaction.null",
    "open_images": "images.sources",
    "photographs": "images.photographs",
    "query_key_maps": "activations.project",
    "query_key_kernels": "vit.tree",
    "save": "weights.export",
    "scan_images": "analyses.top_images.scan",
    "sheet_rows": "analyses.top_images.sheets",
    "to_dataset": "results.modes",
    "top_images_dataset": "analyses.top_images.tables",
}

__all__ = [*_HOME, "figures"]  # noqa: PLE0604


def __getattr__(name: str):
    if name == "figures":
        return import_module("qkjax.figures")
    if name not in _HOME:
        raise AttributeError(f"module 'qkjax' has no attribute {name!r}")
    return getattr(import_module(f"qkjax.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
