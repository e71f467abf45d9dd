"""All kinds of input."""

from . import image_sets, models, onnx_models, torch_models

KINDS = {**models.KINDS, **torch_models.KINDS, **onnx_models.KINDS, **image_sets.KINDS}
