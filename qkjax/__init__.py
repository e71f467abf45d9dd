"""qkjax: the query-key interaction of vision transformers (arXiv 2405.14880).

    checkpoint = qkjax.load("dinov2-vits14-focus")
    result = qkjax.analyze(checkpoint)                       # an xarray.Dataset
    modes = qkjax.decompose(checkpoint)
    best = qkjax.top_images(checkpoint)
    without = qkjax.edit(checkpoint, "drop", "cosine>0.5 layers=0-3")

Every analysis takes a checkpoint in memory and returns an xarray.Dataset. An analysis prints and writes nothing
unless you pass a folder. `import qkjax` is fast because each name is imported only when it is first used.
"""

import sys
import warnings
from importlib import import_module

_HOME = {
    "BiasTerms": "interaction.bias",
    "Checkpoint": "weights.checkpoint",
    "Metrics": "interaction.metrics",
    "Modes": "interaction.modes",
    "PassOptions": "passes.options",
    "QkjaxError": "errors",
    "QueryKey": "interaction.query_key",
    "Rotary": "vit.rotary_config",
    "TrainConfig": "train.config",
    "ViT": "vit.model",
    "ViTConfig": "vit.config",
    "ablate": "analyses.ablate.compute",
    "analyze": "analyses.analyze",
    "attention_preference": "analyses.preference.compute",
    "attention_sinks": "analyses.sinks.compute",
    "attribute_logits": "analyses.image",
    "bias_terms": "analyses.decomposition",
    "compare": "analyses.compare",
    "composition": "analyses.composition.compute",
    "contrastive_covariance": "analyses.contrast.compute",
    "decompose": "analyses.decomposition",
    "describe": "analyses.describe",
    "edit": "analyses.edit",
    "export": "weights.export",
    "forward": "analyses.forward",
    "from_kernels": "weights.memory",
    "load": "weights.load",
    "measure": "interaction.metrics",
    "output_value_modes": "analyses.output_value",
    "preprocess": "analyses.forward",
    "query_key": "analyses.decomposition",
    "query_key_maps": "analyses.image",
    "same_object": "analyses.objects.compute",
    "save": "weights.export",
    "show": "report.show",
    "sweep": "train.sweep",
    "token_statistics": "analyses.tokens.compute",
    "top_images": "analyses.top_images.compute",
}
_RENAMED = {
    "attention": ("analyses.decomposition", "query_key"),
    "Attention": ("interaction.query_key", "QueryKey"),
    "dissect": ("analyses.image", "attribute_logits"),
    "edited": ("analyses.edit", "edit_with_notes"),
    "open_images": ("images.sources", "open_images"),
    "photographs": ("images.default_set", "photographs"),
    "query_key_kernels": ("vit.tree", "query_key_kernels"),
    "scan_images": ("analyses.top_images.compute", "top_images"),
}
"""Names of version 0.1.0, each with the module and the name under which the object is found now."""
_MODULES = ("figures", "images", "train")

__all__ = [*_HOME, *_MODULES]  # noqa: PLE0604


def __getattr__(name: str):
    if name in _MODULES:
        return _imported(name)
    if name in _RENAMED:
        module, new = _RENAMED[name]
        warnings.warn(f"qkjax.{name} is now qkjax.{module}.{new}", DeprecationWarning, stacklevel=2)
        return getattr(_imported(module), new)
    if name not in _HOME:
        raise AttributeError(f"module 'qkjax' has no attribute {name!r}")
    return getattr(_imported(_HOME[name]), name)


def _imported(module: str):
    """A module of this package; if it uses JAX, the persistent compilation cache is turned on."""
    imported = import_module(f"qkjax.{module}")
    if "jax" in sys.modules:
        import_module("qkjax.runtime.compilation_cache").use_compilation_cache()
    return imported


def __dir__() -> list[str]:
    return sorted(__all__)
