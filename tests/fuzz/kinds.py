"""All kinds of input."""

from . import image_sets, models, onnx_models, options, progress, results, runs, torch_models

MODULES = (models, torch_models, onnx_models, image_sets, progress, results, options, runs)
KINDS = {name: kind for module in MODULES for name, kind in module.KINDS.items()}
