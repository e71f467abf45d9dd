"""Reads the rotary positions of transformers' image models from their configuration."""

from collections.abc import Mapping

from qkjax.errors import QkjaxError
from qkjax.vit.rotary_config import Rotary

KINDS = {
    "dinov3_vit": (("default",), 100.0, {"coordinates": "centred", "pairs": "half"}),
    "mlcd_vision_model": (("axial",), 10000.0, {"pairs": "half", "class_angles": True}),
    "sam3_vit_model": (("axial",), 10000.0, {"first": "columns"}),
}
"""For each model type: allowed values of `rope_type`, the default temperature, and other fields of `Rotary`."""


def rotation_of(kind: str, values: Mapping) -> Rotary | None:
    """The rotary positions that a configuration states; None if qkjax knows none for the model type.

    Raises:
      QkjaxError: the configuration states another kind of rotation than transformers has for this type.
    """
    if kind not in KINDS:
        return None
    types, temperature, fields = KINDS[kind]
    parameters = values.get("rope_parameters") or {}
    stated = parameters.get("rope_type", types[0])
    theta = parameters.get("rope_theta", values.get("rope_theta", temperature))
    if stated not in types or type(theta) not in (int, float) or theta <= 0:
        raise QkjaxError(
            f"config.json has rope_type={stated!r} and rope_theta={theta!r}: expected rope_type={types[0]!r} and a "
            "positive rope_theta"
        )
    return Rotary(float(theta), **fields)
